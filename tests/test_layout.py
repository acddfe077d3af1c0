"""The rules of the house, held by reading the source."""

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "trainer", "tools")
MAX_LINE = 99
MAX_ENTRY_LINES = 79
WITHOUT_TORCH = (
    "atomic", "class_mix", "cores", "draws", "engines", "existing_shards", "images", "ledger",
    "manifest", "moments", "open_shards", "order", "plan", "prepare", "reader", "receipt",
    "renewal", "shard_maker", "shards", "sources", "stage_folder", "stage_plan", "stage_trouble",
    "staging", "totals", "transfer",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A Python file of the project."""

    path: Path  # relative to the root
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        return self.path.parts[0]

    @property
    def module(self) -> str:
        return ".".join(self.path.with_suffix("").parts)

    @property
    def is_entry(self) -> bool:
        """Whether it is there to be run: it has a main guard, a shebang or a run bit."""
        runs = os.access(ROOT / self.path, os.X_OK) or self.text.startswith("#!")
        return runs or 'if __name__ == "__main__":' in self.text

    def imported(self) -> Iterator[str]:
        """Full names of the modules it imports, and of what it imports from them."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(*packages: str) -> list[Source]:
    paths = sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))
    assert paths
    return [Source(path.relative_to(ROOT), path.read_text()) for path in paths]


def importers(*packages: str, of: str) -> list[str]:
    """Files of `packages` that import the module or package `of`, or anything below it."""
    return [
        str(source.path)
        for source in sources(*packages)
        if any(name == of or name.startswith(f"{of}.") for name in source.imported())
    ]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("pipeline", "trainer"),
        ("pipeline", "tools"),
        ("pipeline", "tests"),
        ("trainer", "tools"),
        ("trainer", "tests"),
        ("tools", "tests"),
    ],
)
def test_imports_flow_one_way(package: str, forbidden: str) -> None:
    assert importers(package, of=forbidden) == []


def test_dali_is_imported_by_the_graph_and_by_peers_only() -> None:
    found = importers(*PACKAGES, of="nvidia")
    assert "pipeline/graph.py" in found
    others = [path for path in found if path != "pipeline/graph.py"]
    assert [path for path in others if not path.startswith("tools/measure/peers")] == []


def test_the_graph_is_imported_only_where_a_dali_backend_is_opened() -> None:
    assert importers(*PACKAGES, of="pipeline.graph") == ["pipeline/backends.py"]
    text = (ROOT / "pipeline/backends.py").read_text()
    at_import = ast.unparse(ast.Module(top_level_imports(ast.parse(text)), []))
    assert "graph" not in at_import


def top_level_imports(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_torch_is_not_imported_by_what_does_not_need_it(name: str) -> None:
    assert f"pipeline/{name}.py" not in importers("pipeline", of="torch")


def test_torch_dali_and_the_trainer_are_not_loaded_by_what_does_not_need_them() -> None:
    modules = ", ".join(f"pipeline.{name}" for name in WITHOUT_TORCH)
    heavy = {"torch", "nvidia", "trainer", "tools"}
    program = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_importing_the_loader_does_not_import_dali() -> None:
    program = "import sys, pipeline.loader; print('nvidia.dali' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


# ---- entry files ----


def entry_files() -> list[Source]:
    found = [source for source in sources(*PACKAGES) if source.is_entry]
    assert found
    return found


@pytest.mark.parametrize("source", entry_files(), ids=lambda source: str(source.path))
def test_entry_files_are_short_runnable_and_say_their_command(source: Source) -> None:
    lines = source.text.splitlines()
    assert len(lines) <= MAX_ENTRY_LINES
    assert lines[0] == "#!/usr/bin/env python3"
    assert os.access(ROOT / source.path, os.X_OK)
    assert lines[-2:] == ['if __name__ == "__main__":', "    main()"]
    assert f"\n    {source.path.as_posix()}" in (ast.get_docstring(source.tree, clean=False) or "")
    assert "sys.path" not in source.text


@pytest.mark.parametrize("source", entry_files(), ids=lambda source: str(source.path))
def test_nothing_runs_when_an_entry_file_is_imported(source: Source) -> None:
    allowed = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign
    docstring, *body, guard = source.tree.body
    assert isinstance(docstring, ast.Expr) and isinstance(guard, ast.If)
    assert [ast.unparse(node) for node in body if not isinstance(node, allowed)] == []


@pytest.mark.parametrize("source", entry_files(), ids=lambda source: str(source.path))
def test_nothing_imports_an_entry_file(source: Source) -> None:
    assert importers(*PACKAGES, of=source.module) == []


def test_console_commands_and_entry_files_are_the_same() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    commands = dict(re.split(r"\s*=\s*", line) for line in lines if line)
    assert all(name.startswith("fullfeed-") for name in commands)
    missing = set(commands.values()) - {f"{source.module}:main" for source in entry_files()}
    assert missing == set()


# ---- files ----


@pytest.mark.parametrize("package", ["trainer", "tools"])
def test_no_file_hides_the_standard_library_or_the_pipeline(package: str) -> None:
    # A script's own folder comes first on the import path.
    names = {source.path.stem for source in sources(package)} - {"__init__"}
    names |= {source.path.parent.name for source in sources(package)}
    assert names & (set(sys.stdlib_module_names) | {"pipeline"}) == set()


def test_imports_are_absolute() -> None:
    relative = [
        f"{source.path}: {ast.unparse(node)}"
        for source in sources(*PACKAGES, "tests")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_init_files_hold_a_docstring_and_nothing_else() -> None:
    inits = [s for s in sources(*PACKAGES, "tests") if s.path.name == "__init__.py"]
    full = [str(s.path) for s in inits if len(s.tree.body) != 1 or not ast.get_docstring(s.tree)]
    assert full == []


def test_every_package_folder_has_an_init_file() -> None:
    """Those of the tests too: without, pytest refuses two files of one name in two folders."""
    folders = {source.path.parent for source in sources(*PACKAGES, "tests")}
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_every_module_says_what_it_is() -> None:
    found = sources(*PACKAGES, "tests")
    assert [str(source.path) for source in found if not ast.get_docstring(source.tree)] == []


def test_lines_are_at_most_99_long() -> None:
    long = [
        f"{source.path}:{number}"
        for source in sources(*PACKAGES, "tests")
        for number, line in enumerate(source.text.splitlines(), 1)
        if len(line) > MAX_LINE
    ]
    assert long == []


def test_links_between_pages_lead_to_files() -> None:
    pages = [ROOT / "README.md", ROOT / "shards/README.md", *sorted((ROOT / "docs").glob("*.md"))]
    link = re.compile(r"(?:\]\(|src=\"|srcset=\")([^)#\"]+)[)#\"]")
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in link.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


# ---- README's tree ----


def tree_of_readme() -> list[str]:
    """The paths that the tree in README names; folders end with a slash."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    trees = [block for block in blocks if re.search(r"^pipeline/", block, re.MULTILINE)]
    if not trees:
        pytest.skip("README has no tree yet")
    found: list[str] = []
    folder = ""
    for line in trees[0].splitlines():
        if not line.strip():
            continue
        names = re.split(r"\s{2,}", line.strip())[0].split(" ")
        indented = line.startswith(" ")
        path_like = [name for name in names if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", name)]
        found += [(folder if indented else "") + name for name in path_like]
        if not indented:
            folder = names[0]
    return found


def test_what_the_tree_names_is_there() -> None:
    assert [path for path in tree_of_readme() if not (ROOT / path).exists()] == []


def test_what_is_there_is_in_the_tree() -> None:
    named = {path.rstrip("/") for path in tree_of_readme()}
    there = set()
    for source in sources(*PACKAGES):
        if source.path.name != "__init__.py":
            there.add("/".join(source.path.parts[:2]))  # a module, or a folder of the package
    assert there - named == set()
