"""`download`, `weights check`, `weights convert`, `reconstruct-motion`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from .console import print_table

LOGGER = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Download:
    """Download weights: shows the table, or fetches what is named.

    Interrupted downloads go on where they stopped. HF_HOME, HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE are honoured.
    """

    names: Positional[tuple[str, ...]] = ()
    """Entries or groups of the table; nothing: show the table."""

    folder: Path | None = None
    """Where to put the files. Default: the Hugging Face cache."""

    def run(self) -> int:
        """Show the table, or fetch."""
        from ..weights.downloads import DOWNLOADS, GROUPS, download

        if not self.names:
            rows = [
                [
                    entry.name,
                    entry.repository or entry.pieces[0].file,
                    entry.licence,
                    entry.needed_for,
                ]
                for entry in DOWNLOADS
            ]
            print_table("Weights", ["name", "where", "licence", "needed for"], rows)
            groups = [[name, ", ".join(names)] for name, names in GROUPS.items()]
            print_table("Groups", ["name", "entries"], groups)
            return 0
        for arrived in download(self.names, self.folder):
            LOGGER.info("%s: %s", arrived.name, arrived.path)
        return 0


@dataclass(frozen=True, kw_only=True)
class CheckWeights:
    """Say what weight files are, and what they lack."""

    files: Positional[tuple[Path, ...]]
    """Weight files, or folders that hold one."""

    def run(self) -> int:
        """Check every file; 1 if one is not usable."""
        from ..weights.commands import check_file
        from ..weights.files import WeightsError

        num_usable = 0
        for path in self.files:
            try:
                report = check_file(path)
            except WeightsError as e:  # the others are checked all the same
                LOGGER.error("%s", e)
                continue
            for line in report.lines():
                LOGGER.info("%s", line)
            num_usable += report.is_usable
        return 0 if num_usable == len(self.files) else 1


@dataclass(frozen=True, kw_only=True)
class ConvertWeights:
    """Write a weight file anew as safetensors.

    Reads the released and original files (.safetensors, .bin, .pth, .ckpt, .torch) without running
    code in them. A folder with vae, encoder_prompt and decoder_prompt becomes one motion VAE file.
    """

    source: Positional[Path]
    """File or folder to read."""

    target: Positional[Path]
    """File to write, ending in .safetensors."""

    names: Literal["original", "diffusers"] | None = None
    """Names of the tensors. Default: transformers' for UMT5 and CLIP, original for all else."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Default: as stored."""

    def run(self) -> int:
        """Convert."""
        from ..weights.commands import convert_file

        dtype = None if self.dtype is None else _DTYPES[self.dtype]
        for line in convert_file(self.source, self.target, names=self.names, dtype=dtype).lines():
            LOGGER.info("%s", line)
        return 0


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Look into weight files, or convert them."""

    command: OmitSubcommandPrefixes[
        Annotated[CheckWeights, subcommand("check")]
        | Annotated[ConvertWeights, subcommand("convert")]
    ]

    def run(self) -> int:
        """Run the chosen command."""
        return self.command.run()


@dataclass(frozen=True, kw_only=True)
class ReconstructMotion:
    """Show what the motion VAE keeps of a scene's motion, in numbers and a picture."""

    scene: Positional[Path]
    """Scene file with tracks on a pixel grid."""

    motion_vae: Path | None = None
    """Motion VAE weights. Default: the downloaded ones, or else the embedded ones."""

    wan_vae: Path | None = None
    """Wan VAE whose encoder a motion VAE without one has."""

    profile: Literal["released", "own"] | None = None
    """How the weights were trained. Default: released; with the embedded weights own."""

    device: str | None = None
    """cpu, cuda or mps. Default: the best there is."""

    output: Annotated[Path, arg(aliases=["-o"])] = Path("motion.png")
    """Picture to write."""

    def run(self) -> int:
        """Encode, decode, compare."""
        from ..devices import detect_device
        from ..files import replacing
        from ..scene_files import load_scene
        from ..strag.profile import OWN, RELEASED
        from ..strag.reconstruction import reconstruct_motion, reconstruction_picture
        from ..weights.model_loading import load_motion_vae

        scene, (file, encoder, trained) = load_scene(self.scene), self._weights()
        profile = {"released": RELEASED, "own": OWN}[trained]
        device = detect_device(self.device).device
        # Not rounded to the device's fast dtype: that loss would not be the VAE's.
        vae = load_motion_vae(
            file, profile.latents, encoder=encoder, dtype=torch.float32, device=device
        )
        result = reconstruct_motion(scene, vae, profile)
        with replacing(self.output) as temporary:
            reconstruction_picture(result).save(temporary)
        LOGGER.info("%s", result.describe())
        LOGGER.info("Wrote %s.", self.output)
        return 0

    def _weights(self) -> tuple[Path, Path | None, Literal["released", "own"]]:
        """Return the motion VAE, the Wan VAE, and how they were trained."""
        from ..tiny import embedded_file
        from ..weights.downloads import find_downloaded

        file = self.motion_vae or find_downloaded("motion-vae")
        if file is not None:
            return file, self.wan_vae, self.profile or "released"
        LOGGER.info("No motion VAE was named or downloaded: the embedded one is looked into.")
        encoder = self.wan_vae or embedded_file("wan_vae")
        return embedded_file("motion_vae"), encoder, self.profile or "own"
