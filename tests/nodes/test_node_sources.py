"""What holds for every node, read from the source: no host is needed."""

import ast

LONGEST = 50


def test_every_node_has_at_most_fifty_lines(node_classes):
    lengths = {n: item.end_lineno - item.lineno + 1 for n, (_, item) in node_classes.items()}
    assert {n: length for n, length in lengths.items() if length > LONGEST} == {}


def test_every_node_is_listed_by_its_module_and_every_module_by_the_pack(node_classes, pack_folder):
    families = (pack_folder / "nodes" / "__init__.py").read_text(encoding="utf-8")
    listed_families = next(
        {name.id for name in item.value.elts}
        for item in ast.parse(families).body
        if isinstance(item, ast.Assign) and item.targets[0].id == "_FAMILIES"
    )
    assert listed_families == {module for module, _ in node_classes.values()}
    for name, (module, _) in node_classes.items():
        source = (pack_folder / "nodes" / f"{module}.py").read_text(encoding="utf-8")
        listed = next(
            {element.id for element in item.value.elts}
            for item in ast.parse(source).body
            if isinstance(item, ast.AnnAssign) and item.target.id == "NODES"
        )
        assert name in listed


def test_nodes_are_of_the_third_schema_only(pack_folder):
    for path in [pack_folder / "__init__.py", *(pack_folder / "nodes").glob("*.py")]:
        assert "NODE_CLASS_MAPPINGS" not in path.read_text(encoding="utf-8"), path


def test_class_and_node_have_one_name(node_classes):
    for name, (_, item) in node_classes.items():
        ids = [
            keyword.value.value
            for call in ast.walk(item)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "io.Schema"
            for keyword in call.keywords
            if keyword.arg == "node_id"
        ]
        assert ids == [name]


def test_nothing_outside_of_the_folder_module_asks_the_host_where_its_folders_are(pack_folder):
    """So that no file name that comes with a workflow leaves them unchecked."""
    for path in (pack_folder / "nodes").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        for name in ("get_output_directory", "get_input_directory", "get_save_image_path"):
            assert path.name == "folders.py" or name not in source, path


def test_every_node_has_a_help_page_in_both_languages_that_names_every_input(
    node_classes, pack_folder, locale
):
    docs = pack_folder / "web" / "docs"
    english = locale("en", "nodeDefs.json")
    for name in node_classes:
        for page in (docs / f"{name}.md", docs / name / "zh.md"):
            text = page.read_text(encoding="utf-8")
            assert text.startswith("# "), page
            for item in english[name]["inputs"]:
                assert item in text, f"{page.relative_to(docs)} does not mention {item}"


def test_every_help_page_belongs_to_a_node(node_classes, pack_folder):
    pages = {path.stem for path in (pack_folder / "web" / "docs").iterdir()}
    assert pages == set(node_classes)
