"""Every text of the page is there in English and in Chinese, with the same values to fill in."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_JS = Path(__file__).parents[2] / "web" / "js"
_DRIVER = """
const { TEXTS } = await import(`file://${process.argv[1]}/texts.js`);
await import(`file://${process.argv[1]}/camera_editor_texts.js`);
process.stdout.write(JSON.stringify(TEXTS));
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Language -> key -> text."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("js")
    (folder / "package.json").write_text('{"type": "module"}')
    for name in ("texts.js", "camera_editor_texts.js"):
        shutil.copy(_JS / name, folder)
    command = [node, "--input-type=module", "--eval", _DRIVER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_both_languages_say_the_same_things(texts):
    assert len(texts["en"]) > 50
    assert texts["en"].keys() == texts["zh"].keys()
    for key, english in texts["en"].items():
        chinese = texts["zh"][key]
        assert english, key
        assert chinese, key
        values = [set(re.findall(r"\{(\w+)\}", text)) for text in (english, chinese)]
        assert values[0] == values[1], key


def test_every_text_that_is_asked_for_is_there(texts):
    asked = set()
    for file in _JS.glob("*.js"):
        asked |= set(re.findall(r"""\btext\(\s*["']([\w.-]+)["']""", file.read_text()))
    assert len(asked) > 20
    assert asked <= texts["en"].keys()
