"""The texts of all nodes in English and Chinese."""

import json
import re

import pytest

_CHINESE = re.compile("[\u4e00-\u9fff]")
_NUMBER = re.compile(r"(?<![A-Za-z])\d+(?:\.\d+)?(?![A-Za-z\d])")
_SAME_IN_BOTH = {"VAE", "Splat", "Geo4D", "More4D"}


@pytest.mark.parametrize("name", ["nodeDefs.json", "main.json"])
def test_both_languages_have_the_same_texts(locale, texts, name):
    english, chinese = (texts(locale(language, name)) for language in ("en", "zh"))
    assert english.keys() - chinese.keys() == set(), "run locales/update.py and translate"
    assert chinese.keys() - english.keys() == set()


def test_english_is_english_and_chinese_is_chinese(locale, texts):
    for name in ("nodeDefs.json", "main.json"):
        for path, text in texts(locale("en", name)).items():
            assert text.isascii(), path
            assert text, path
        for path, text in texts(locale("zh", name)).items():
            assert _CHINESE.search(text) or text in _SAME_IN_BOTH, (path, text)


def test_numbers_survive_translation(locale, texts):
    english, chinese = (texts(locale(language, "nodeDefs.json")) for language in ("en", "zh"))
    for path, text in english.items():
        numbers = [set(_NUMBER.findall(part)) for part in (text, chinese[path])]
        assert numbers[0] <= numbers[1], (path, numbers)


def test_every_node_and_input_has_its_text(node_classes, locale):
    english = locale("en", "nodeDefs.json")
    assert set(english) == set(node_classes)
    for node, item in english.items():
        assert item["display_name"].endswith("(More4D)"), node
        assert len(item["description"]) > 30, node
        for name, text in item["inputs"].items():
            assert len(text["tooltip"]) > 5, (node, name)


@pytest.mark.host
def test_the_english_texts_are_those_of_the_nodes_in_the_host(
    host_folder, pack_folder, tmp_path, locale
):
    code = (
        "import json, os, sys\n"
        "folder, locales, made = sys.argv[1:]\n"
        "del sys.argv[1:]\n"
        "os.environ['COMFYUI_PATH'] = folder\n"
        "sys.path.append(locales)\n"
        "import update\n"
        "json.dump(update.english(update.load_pack()), open(made, 'w'))\n"
    )
    made = tmp_path / "made.json"
    done = host_folder.run(
        "-c", code, host_folder.folder, pack_folder / "locales", made, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(made.read_text()) == locale("en", "nodeDefs.json"), "run locales/update.py"
