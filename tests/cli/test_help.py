"""What --help shows: everything, below headings, in as many columns as there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from converter.cli import cli, options
from converter.cli.group import EXIT_CODES, SECTIONS, Command
from converter.parity.verdict.limits import Limits
from converter.weights.precisions import PRECISIONS

Run = Callable[..., Result]

COMMANDS: list[Command] = [cli, *cli.commands.values()]  # type: ignore[list-item]
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
each_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


def test_help_is_asked_for(run: Run) -> None:
    for arguments in (["-h"], ["--help"], ["convert", "-h"], ["convert", "--help"]):
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("Usage: ")


def helped(command: Command, columns: int = 80) -> str:
    """The help as a terminal so wide gets it; click's own runner has 80 columns, always."""
    group = click.Context(cli, info_name="gpt2onnx", **cli.context_settings)
    ctx = group if command is cli else click.Context(command, group, command.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        return command.get_help(ctx)


@each_command
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(command: Command, columns: int) -> None:
    assert max(map(len, helped(command, columns).splitlines())) <= columns


@each_command
def test_in_60_columns_only_what_is_to_be_copied_is_longer(command: Command) -> None:
    long = [line for line in helped(command, 60).splitlines() if len(line) > 60]
    assert {line.strip() for line in long} <= set(command.examples)


@each_command
def test_help_shows_each_option_once_and_says_what_it_takes(command: Command) -> None:
    shown, nothing = helped(command), command.make_context(command.name, [], resilient_parsing=True)
    for option in (param for param in command.params if isinstance(param, click.Option)):
        assert len(re.findall(rf"^  (?:-\w, )?{option.opts[-1]}\b(?!-)", shown, re.MULTILINE)) == 1, option.opts
        assert option.help, option.opts
        if not option.is_flag:
            assert option.make_metavar(click.Context(command)), option.opts
            assert option.show_default or not nothing.params[str(option.name)], option.opts


@each_command
def test_help_shows_each_argument_and_example(command: Command) -> None:
    lines = [line.strip() for line in helped(command).splitlines()]
    assert command.examples
    assert set(command.examples) <= set(lines[lines.index("Examples:") :])
    assert all(argument.help for argument in command.params if isinstance(argument, click.Argument))


def test_headings_name_options_that_there_are() -> None:
    shared = (options.SOURCE_GROUP, options.RUNTIME_GROUP, options.OUTPUT_GROUP)
    optional = {name for group in shared for names in group.values() for name in names}
    assert optional - {"help"} <= {param.name for command in COMMANDS for param in command.params} | {"debug"}
    for command in COMMANDS:
        own = {name for names in command.groups.values() for name in names} - optional
        assert own <= {param.name for param in command.params}, command.name


def test_the_list_of_commands_has_all_of_them_in_whole_sentences() -> None:
    shown = helped(cli)
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(cli.commands)
    for command in cli.commands.values():
        assert re.search(rf"^  {command.name} +{re.escape(command.short_help or '?')}$", shown, re.MULTILINE)


def test_every_exit_code_is_in_the_help_and_in_the_readme() -> None:
    shown = helped(cli)
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^  {code} +{re.escape(meaning)}$", shown, re.MULTILINE)
    told = README[README.index("Exit codes: ") :].partition("\n\n")[0]
    assert set(re.findall(r"\b\d+\b", told)) == set(map(str, EXIT_CODES))


def test_every_precision_and_every_limit_is_completed() -> None:
    def completed(command: str, option: str) -> set[str]:
        parameter = next(p for p in cli.commands[command].params if option in p.opts)
        context = click.Context(cli.commands[command])
        return {item.value for item in parameter.shell_complete(context, "")}

    assert completed("convert", "--precision") == set(PRECISIONS)
    assert completed("check", "--limit") == {f"{name}=" for name in Limits().named()}


def test_a_typing_error_is_met_with_what_was_meant(run: Run) -> None:
    for arguments, meant in ((["convrt"], "convert"), (["generate", "OUT", "x", "--temprature", "1"], "--temperature")):
        result = run(*arguments)
        assert result.exit_code == 2
        assert f"Did you mean '{meant}'?" in result.stderr
