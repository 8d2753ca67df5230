"""What captions say at each byte, and that the text encoder learns to read it."""

from dataclasses import replace

import pytest
import torch

from more4d_backend.tiny import relative_path
from more4d_backend.weights.model_loading import load_byte_text
from training import train_tiny
from training.procedural.dataset import procedural_tiny
from training.procedural.scenes import draw_caption
from training.run.settings import SettingsError
from training.tiny import text
from training.tiny.text import PROPERTIES, Captions, ClauseReader


@pytest.fixture
def training(monkeypatch, tmp_path):
    monkeypatch.setattr(text, "_NUM_HELD_OUT", 8)
    return replace(
        train_tiny.RECIPES["text"],
        output=tmp_path,
        steps=2,
        batch_size=4,
        pool_size=8,
        device="cpu",
        precision="fp32",
    )


def test_a_caption_names_every_actor_and_no_colour_twice():
    for seed in range(50):
        said, actors = draw_caption(seed, procedural_tiny())
        assert 2 <= len(actors) <= 4
        assert all(f"{actor.name} {actor.motion}" in said.lower() for actor in actors)
        assert len({actor.name.split()[0] for actor in actors}) == len(actors)
    assert draw_caption(7, procedural_tiny()) == draw_caption(7, procedural_tiny())


def test_a_caption_may_have_one_actor():
    drawn = [draw_caption(seed, procedural_tiny(), fewest=1) for seed in range(40)]
    alone = [said for said, actors in drawn if len(actors) == 1]
    assert 3 < len(alone) < 25
    assert not any(", while" in said or ";" in said for said in alone)


def test_labels_are_those_of_the_clause_that_a_byte_is_in():
    captions = Captions.drawn(100, 20, shortened=False)
    for number, said in enumerate(captions.texts):
        _, actors = draw_caption(100 + number, procedural_tiny(), fewest=1)
        labels = {name: rows[number] for name, rows in captions.labels.items()}
        labelled = (labels["motion"] >= 0).sum()
        assert labelled == sum(len(f"{actor.name} {actor.motion}") for actor in actors)
        for actor in actors:
            place = said.index(actor.name)
            answers = {n: PROPERTIES[n][labels[n][place]] for n in PROPERTIES}
            assert f"{answers['color']} {answers['pattern']} {answers['noun']}" == actor.name
            assert answers["motion"] == actor.motion


def test_shortened_captions_leave_words_out_and_have_no_labels_for_them():
    full, short = Captions.drawn(0, 60, shortened=False), Captions.drawn(0, 60)
    assert sum(map(len, short.texts)) < sum(map(len, full.texts))
    for name in ("color", "pattern"):
        is_clause, is_named = short.labels["motion"] >= 0, short.labels[name] >= 0
        assert 0.5 < is_named[is_clause].float().mean() < 0.95
        assert not is_named[~is_clause].any()
    for number, said in enumerate(short.texts):
        nouns, colors = (short.labels[name][number].tolist() for name in ("noun", "color"))
        for place, noun in enumerate(nouns):
            if noun < 0 or (place and nouns[place - 1] >= 0):
                continue  # only where a clause begins
            first = said[place:].split()[0]
            assert (first in PROPERTIES["color"]) == (colors[place] >= 0)
            assert PROPERTIES["noun"][noun] in said[place:]


def test_some_of_the_captions_keep_their_labels():
    captions = Captions.drawn(0, 6)
    some = captions.chosen(torch.tensor([4, 1]))
    assert some.texts == (captions.texts[4], captions.texts[1])
    width = max(map(len, some.texts))
    assert torch.equal(some.labels["noun"], captions.labels["noun"][[4, 1], :width])


def test_it_learns_to_read_clauses():
    torch.manual_seed(0)
    captions, reader = Captions.drawn(0, 8), ClauseReader()
    before = reader.right(captions)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        reader.losses(captions)["loss"].backward()
        optimizer.step()
    after = reader.right(captions)
    assert all(after[name] > before[name] + 0.2 for name in PROPERTIES)
    assert min(after.values()) > 0.6


def test_the_trained_encoder_is_written_as_the_embedded_file(training, caplog):
    caplog.set_level("INFO")
    train_tiny.train_text(training)
    encoder = load_byte_text(training.output / relative_path("text_encoder"))
    tokens = encoder(["a red striped ball moves left"])
    assert tokens.shape == (1, 512, 4096)
    assert "On other captions, read right" in caplog.text
    assert not training.unfinished.exists()


def test_it_begins_with_nothing_alone(training, tmp_path):
    with pytest.raises(SettingsError, match="from nothing alone"):
        train_tiny.train_text(replace(training, start=tmp_path))
