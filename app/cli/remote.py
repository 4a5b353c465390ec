"""Commands that speak to a running service: models, aliases, edits, jobs, predictions.

Knows arguments and request bodies. Does not know how HTTP is spoken or how answers are laid out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client import client_for
from app.cli.files import read_edit_request
from app.cli.printing import print_json, print_rows, report_job
from salem.records import Task

commands = typer.Typer()
models_commands = typer.Typer(no_args_is_help=True, help="Hosted models.")
aliases_commands = typer.Typer(no_args_is_help=True, help="Names of versions that can be moved.")
edits_commands = typer.Typer(no_args_is_help=True, help="Corrections.")
jobs_commands = typer.Typer(no_args_is_help=True, help="Jobs.")
commands.add_typer(models_commands, name="models")
commands.add_typer(aliases_commands, name="aliases")
commands.add_typer(edits_commands, name="edits")
commands.add_typer(jobs_commands, name="jobs")

Url = Annotated[str | None, typer.Option("--url", envvar="SALEM_URL", help="Where the service is.")]
Key = Annotated[str | None, typer.Option(help="Idempotency key: sending again gives the same job.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the job to its end; exit 1 when it fails.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@models_commands.command("add")
def models_add(
    name: Annotated[str, typer.Argument(help="What the model is to be called.")],
    task: Annotated[Task, typer.Option(help="What it does.")],
    reference: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Labeled samples, JSON Lines.")
    ],
    folder: Annotated[str | None, typer.Option(help="Folder under the server's models root.")] = None,
    hub: Annotated[str | None, typer.Option(help="Hub id with its commit: org/name@<40 digits>.")] = None,
    wait: Wait = False,
    url: Url = None,
) -> None:
    """Host a model from a folder or a hub, with its reference set."""
    if (folder is None) == (hub is None):
        raise typer.BadParameter("give one of --folder and --hub")
    source: dict[str, str] = {"kind": "folder", "path": folder or ""}
    if hub is not None:
        hub_id, _, revision = hub.partition("@")
        source = {"kind": "hub", "id": hub_id, "revision": revision}
    with client_for(url) as client:
        uploaded = client.upload("/references", reference.read_bytes())
        body = {"name": name, "task": task.value, "source": source, "reference_sha256": uploaded["sha256"]}
        report_job(client, client.post("/models", body), wait)


@models_commands.command("list")
def models_list(as_json: AsJson = False, url: Url = None) -> None:
    """List hosted models."""
    with client_for(url) as client:
        rows = client.get("/models")["data"]
    print_rows(rows, ("name", "task", "state", "num_parameters", "num_pass_samples", "num_held_out"), as_json)


@models_commands.command("show")
def models_show(name: str, url: Url = None) -> None:
    """Show a model and its versions."""
    with client_for(url) as client:
        shown = client.get(f"/models/{name}")
        versions = client.get(f"/models/{name}/versions")["data"]
    print_json({**shown, "versions": [entry["number"] for entry in versions]})


@aliases_commands.command("set")
def aliases_set(model: str, alias: str, number: int, url: Url = None) -> None:
    """Make an alias name a version, e.g. `salem aliases set intents production 3`."""
    with client_for(url) as client:
        print_json(client.put(f"/models/{model}/aliases/{alias}", {"version": number}))


@edits_commands.command("post")
def edits_post(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A request, or edits.")],
    model: Annotated[
        str | None, typer.Option(help="Model, version or alias; default the file's own.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Alias to move to the new version.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer to edit; default the most salient.")] = None,
    recipe: Annotated[str | None, typer.Option(help="How the delta is made.")] = None,
    editor: Annotated[
        str | None, typer.Option(help="Id of an editor that makes the edits in one pass.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness.")] = None,
    key: Key = None,
    wait: Wait = False,
    url: Url = None,
) -> None:
    """Post corrections."""
    body = read_edit_request(file)
    options = given(layer=layer, recipe=recipe, editor=editor, seed=seed)
    body["options"] = (body.get("options") or {}) | options
    body |= given(model=model, alias=alias)
    with client_for(url) as client:
        report_job(client, client.post("/edits", body, {"Idempotency-Key": key} if key else None), wait)


@jobs_commands.command("list")
def jobs_list(
    model: Annotated[str | None, typer.Option()] = None,
    state: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List jobs, newest first."""
    with client_for(url) as client:
        rows = client.get("/jobs", model=model, state=state, limit=limit)["data"]
    print_rows(rows, ("id", "kind", "model", "state", "phase", "progress", "created_at"), as_json)


@jobs_commands.command("show")
def jobs_show(job_id: str, wait: Wait = False, url: Url = None) -> None:
    """Show a job: its progress, and its result or error."""
    with client_for(url) as client:
        job = client.get(f"/jobs/{job_id}")
        report_job(client, job, wait) if wait else print_json(job)


@jobs_commands.command("request")
def jobs_request(job_id: str, url: Url = None) -> None:
    """Show what a job was asked to do: its edits, samples and options."""
    with client_for(url) as client:
        print_json(client.get(f"/jobs/{job_id}/request"))


@jobs_commands.command("cancel")
def jobs_cancel(job_id: str, url: Url = None) -> None:
    """End a queued or running job."""
    with client_for(url) as client:
        typer.echo(client.post(f"/jobs/{job_id}/cancel")["state"])


@commands.command()
def predict(
    model: Annotated[str, typer.Argument(help="Model, version (`name:3`) or alias (`name@production`).")],
    inputs: Annotated[list[str], typer.Argument(help="Texts.")],
    pair: Annotated[str | None, typer.Option(help="Second text of every input.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Ask a model, a version or an alias."""
    with client_for(url) as client:
        answer = client.post(
            "/predict", {"model": model, "inputs": [{"input": i, "text_pair": pair} for i in inputs]}
        )
    if as_json:
        print_json(answer)
        return
    for prediction in answer["predictions"]:
        scores = prediction["scores"]
        typer.echo(prediction["output"] + (f"\t{scores[prediction['output']]:.3f}" if scores else ""))


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line: only these go before a file's own."""
    return {name: value for name, value in options.items() if value is not None}
