"""README, documentation and recipes show what exists: commands, options, settings, files, links, Python."""

import dataclasses
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import soundfile
import typer.main
from helpers import markdown, tiny_model

from spark_jax.cli.main import app
from spark_jax.config import SparkConfig
from spark_jax.shared.config_files import load_config
from spark_jax.training.catalog import TRAININGS, load_training

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [path for path in [README, *ROOT.glob("C*.md"), *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]
CARD = ROOT / "spark_jax" / "voices" / "tiny-en" / "MODEL_CARD.md"
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
FOLDERS = r"(?:configs|docs|spark_jax|tests|tools|train)"


def name(path):
    return path.relative_to(ROOT).as_posix()


def recipe_head(path):
    """The comments of a recipe, as text; commands in them are indented."""
    lines = [line.removeprefix("#").removeprefix(" ") for line in path.read_text().splitlines() if line[:1] == "#"]
    return "\n".join(line for line in lines if line.startswith("  "))


def shell_commands(path):
    """The commands that a file shows."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return list(markdown.commands(recipe_head(path)))
    shell = [block.text for block in markdown.blocks(text) if block.language == "sh"]
    return [command for block in shell for command in markdown.commands(block)]


def find_command(words):
    """The command of the `spark-jax` command line that words name, and the words behind it."""
    command, left = typer.main.get_command(app), list(words)
    while hasattr(command, "commands") and left and not left[0].startswith("-"):
        known = command.commands
        assert left[0] in known, f"spark-jax has no {' '.join(words)!r}: {left[0]!r} is none of {', '.join(known)}"
        command = known[left.pop(0)]
    return command, left


def check_options(words):
    command, left = find_command(words)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in left:
        option = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][\w-]*", option):
            assert option in known | {"-h", "--help"}, f"spark-jax {' '.join(words)}: no option {option}"
    return command, left


def check_settings(words):
    """The recipe of a training or a plan exists and takes the settings."""
    kind, config, *left = words[1:] if words[0] == "train" else [None, *words[1:]]
    settings = [left[place + 1] for place, word in enumerate(left) if word == "--set"]
    assert kind is None or kind in TRAININGS
    if config != "--inference" and not config.isupper():  # CONFIG stands for any
        load_config(TRAININGS[kind].config, config, settings) if kind else load_training(config, settings)


@pytest.mark.parametrize("path", [*PAGES, CARD, *RECIPES], ids=name)
def test_commands_shown_exist(path):
    """Each command of `spark-jax` parses as it stands; scripts, test files, extras and make's targets are there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *words in shell_commands(path):
        for word in words:
            assert not re.match(f"{FOLDERS}/", word) or (ROOT / word).exists(), f"{path}: {word} does not exist"
        if program == "spark-jax":
            command, left = check_options(words)
            if "--help" not in words:
                command.make_context(" ".join(words), left)
            if words[0] in ("train", "plan"):
                check_settings(words)
        elif program == "make":
            wanted = [word for word in words if "=" not in word]
            assert set(wanted) <= set(targets), f"{path}: make has no {wanted}"
        elif program == "pip":
            for listed in re.findall(r"^\.\[([\w,-]+)\]$", "\n".join(words), re.MULTILINE):
                assert set(listed.split(",")) <= set(extras), f"{path}: no extra {listed}"


@pytest.mark.parametrize("path", [*PAGES, CARD], ids=name)
def test_code_spans_name_what_exists(path):
    """Files, commands, options of commands and settings that the text mentions."""
    configs = [SparkConfig, *(training.config for training in TRAININGS.values())]
    fields = {field for config in configs for field in setting_names(config)}
    sections = {field.partition(".")[0] for field in fields if "." in field}
    for span in markdown.spans(path.read_text(encoding="utf-8")):
        if re.fullmatch(rf"{FOLDERS}/[\w/.-]*", span):
            assert (ROOT / span).exists(), f"{path}: {span} does not exist"
        elif re.match(rf"(python|pytest) {FOLDERS}/", span):
            assert (ROOT / span.split()[1]).is_file(), f"{path}: {span.split()[1]} does not exist"
        elif span.startswith("spark-jax ") and not span.split()[1].isupper():
            check_options(span.split()[1:])
        elif (match := re.match(r"(\w+)\.(?!json)\w+(?=$|: )", span)) and match[1] in sections:
            assert match[0] in fields, f"{path}: no setting {match[0]}"


def setting_names(config, prefix=""):
    """The settings of a configuration as `--set` takes them."""
    for field in dataclasses.fields(config):
        yield prefix + field.name
        if dataclasses.is_dataclass(field.type):
            yield from setting_names(field.type, f"{prefix}{field.name}.")


@pytest.mark.parametrize("path", [*PAGES, CARD], ids=name)
def test_links_lead_somewhere(path):
    for target in markdown.links(path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        destination = path.parent / file if file else path
        assert destination.exists(), f"{path}: {target} does not exist"
        if anchor:
            assert anchor in markdown.anchors(destination), f"{path}: {target} has no such heading"


def test_the_tables_of_recipes_extras_and_commands_are_complete():
    shown = (ROOT / "docs" / "training" / "index.md").read_text()
    for path in RECIPES:
        assert path.stem.endswith("_model") or f"`{path.stem}`" in shown
    shown = (ROOT / "docs" / "install.md").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in [*extras, *typer.main.get_command(app).commands]:
        assert re.search(rf"^\|.*`{name}`.*\|.*\|$", shown, re.MULTILINE), name


def test_readme_is_short_and_begins_with_the_two_commands():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    first_screen = "\n".join(lines[:30])
    assert "make demo" in first_screen
    assert "make test" in first_screen
    assert not any(line.startswith("|") for line in lines[:30])


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        assert path.relative_to(ROOT / "docs").as_posix() in navigation


@pytest.mark.slow  # compiles the models
@pytest.mark.filterwarnings("ignore:the speech has no end")
@pytest.mark.parametrize("page", [README, ROOT / "docs" / "python.md", ROOT / "docs" / "model_directory.md"], ids=name)
def test_python_examples_run(page, tiny_model_directory, tmp_path, monkeypatch):
    """The examples of a page, one after the other, with a small model of random weights."""
    (tmp_path / "runs").mkdir()
    for folder in ("model", "runs/llm"):
        shutil.copytree(tiny_model_directory, tmp_path / folder)
        config = tmp_path / folder / "config.json"
        short = json.loads(config.read_text()) | {"max_semantic_tokens": 50}  # random weights come to no end
        config.write_text(json.dumps(short))
    for file in ("ref.wav", "in.wav"):
        soundfile.write(tmp_path / file, tiny_model.speech(1.0), 16_000)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in markdown.blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
