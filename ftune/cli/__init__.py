"""The command line: parse, call one plain function, print. Nothing heavy is imported until a verb needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from ftune.cli import cache, compare, data, evaluate, inspect, lr_find, merge, predict, recipes, report, train

app = typer.Typer(
    name="ftune",
    help="Fine-tune language models from YAML recipes.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from ftune import __version__

        print(f"ftune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune language models from YAML recipes: `ftune train recipe.yaml`."""


app.command("train")(train.train_cli)
app.command("eval")(evaluate.eval_cli)
app.command("predict")(predict.predict_cli)
app.command("compare")(compare.compare_cli)
app.command("generate")(evaluate.generate_cli)
app.command("merge")(merge.merge_cli)
app.command("check")(inspect.check_cli)
app.command("plan")(inspect.plan_cli)
app.command("data")(data.data_cli)
app.command("lr-find")(lr_find.lr_find_cli)
app.command("methods")(inspect.methods_cli)
app.command("report")(report.report_cli)
app.command("verify")(inspect.verify_cli)
app.add_typer(recipes.app, name="recipes")
app.add_typer(cache.app, name="cache")
