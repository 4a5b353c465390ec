"""Commands for a running service: models, aliases, edits, jobs, and predictions.

Builds request bodies from arguments. Must not know how requests are sent or how answers are printed.
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
models_commands = typer.Typer(no_args_is_help=True, help="Host models and look at them.")
aliases_commands = typer.Typer(no_args_is_help=True, help="Move aliases, the movable names of versions.")
edits_commands = typer.Typer(no_args_is_help=True, help="Correct answers.")
jobs_commands = typer.Typer(no_args_is_help=True, help="Look at jobs, and cancel them.")
commands.add_typer(models_commands, name="models")
commands.add_typer(aliases_commands, name="aliases")
commands.add_typer(edits_commands, name="edits")
commands.add_typer(jobs_commands, name="jobs")

Url = Annotated[str | None, typer.Option("--url", envvar="SALEM_URL", help="Address of the service.")]
Key = Annotated[
    str | None, typer.Option(help="Idempotency key: a retry with the same key returns the same job.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the job ends; exit with 1 if it fails.")]
ModelName = Annotated[str, typer.Argument(help="Name of a hosted model.")]
JobId = Annotated[str, typer.Argument(help="Id of a job.")]
RequestFile = Annotated[
    Path,
    typer.Argument(
        exists=True, dir_okay=False, help="JSON or JSON Lines file: a whole request, or its edits."
    ),
]
LayerPath = Annotated[str | None, typer.Option(help="Layer to edit. Default: saliency chooses.")]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@models_commands.command("add")
def models_add(
    name: Annotated[str, typer.Argument(help="Name for the model.")],
    task: Annotated[Task, typer.Option(help="Task of the model.")],
    reference: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, help="Reference set: a JSON Lines file of labeled samples."
        ),
    ],
    folder: Annotated[
        str | None, typer.Option(help="Folder of the model under the server's models root.")
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(help="Repository on the model hub, with its commit: org/name@<40 hex digits>."),
    ] = None,
    wait: Wait = False,
    url: Url = None,
) -> None:
    """Host a model from a folder or a model hub, with its reference set."""
    if (folder is None) == (hub is None):
        raise typer.BadParameter("give either --folder or --hub")
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
        rows = client.get_all("/models", "name")
    print_rows(rows, ("name", "task", "state", "num_parameters", "num_pass_samples", "num_held_out"), as_json)


@models_commands.command("show")
def models_show(name: ModelName, url: Url = None) -> None:
    """Show a model and its versions."""
    with client_for(url) as client:
        shown = client.get(f"/models/{name}")
        versions = client.get_all(f"/models/{name}/versions", "number")
    print_json({**shown, "versions": [entry["number"] for entry in versions]})


@aliases_commands.command("set")
def aliases_set(
    model: ModelName,
    alias: Annotated[str, typer.Argument(help="Name of the alias.")],
    number: Annotated[int, typer.Argument(help="Number of the version; 0 is the base.")],
    url: Url = None,
) -> None:
    """Point an alias to a version, for example `salem aliases set intents production 3`."""
    with client_for(url) as client:
        print_json(client.put(f"/models/{model}/aliases/{alias}", {"version": number}))


@edits_commands.command("post")
def edits_post(
    file: RequestFile,
    model: Annotated[
        str | None, typer.Option(help="Model, version, or alias to edit. Default: the file's.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Alias to move to the new version.")] = None,
    layer: LayerPath = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe that makes the delta.")] = None,
    editor: Annotated[
        str | None, typer.Option(help="Id of an editor that makes the edits in a single pass.")
    ] = None,
    seed: Seed = None,
    min_neighborhood: Annotated[
        float | None, typer.Option(help="Refuse a version that keeps a smaller share of near neighbors.")
    ] = None,
    max_drawdown: Annotated[
        float | None, typer.Option(help="Refuse a version with a larger drawdown.")
    ] = None,
    key: Key = None,
    wait: Wait = False,
    url: Url = None,
) -> None:
    """Post corrections: starts a job that makes a new version."""
    body = read_edit_request(file)
    options = given(layer=layer, recipe=recipe, editor=editor, seed=seed)
    body["options"] = (body.get("options") or {}) | options
    bounds = given(min_neighborhood=min_neighborhood, max_drawdown=max_drawdown)
    body["require"] = (body.get("require") or {}) | bounds
    body |= given(model=model, alias=alias)
    with client_for(url) as client:
        report_job(client, client.post("/edits", body, key), wait)


@jobs_commands.command("list")
def jobs_list(
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most jobs to list.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List jobs, newest first."""
    with client_for(url) as client:
        rows = client.get("/jobs", model=model, state=state, limit=limit)["data"]
    print_rows(rows, ("id", "kind", "model", "state", "phase", "progress", "created_at"), as_json)


@jobs_commands.command("show")
def jobs_show(job_id: JobId, wait: Wait = False, url: Url = None) -> None:
    """Show a job: its progress, and its result or error."""
    with client_for(url) as client:
        job = client.get(f"/jobs/{job_id}")
        report_job(client, job, wait) if wait else print_json(job)


@jobs_commands.command("request")
def jobs_request(job_id: JobId, url: Url = None) -> None:
    """Show what a job was asked to do: its edits, samples, and options."""
    with client_for(url) as client:
        print_json(client.get(f"/jobs/{job_id}/request"))


@jobs_commands.command("cancel")
def jobs_cancel(job_id: JobId, url: Url = None) -> None:
    """Cancel a queued or running job."""
    with client_for(url) as client:
        typer.echo(client.post(f"/jobs/{job_id}/cancel")["state"])


@commands.command()
def predict(
    model: Annotated[str, typer.Argument(help="Model, version (`name:3`), or alias (`name@production`).")],
    inputs: Annotated[list[str], typer.Argument(help="Texts to answer.")],
    pair: Annotated[str | None, typer.Option(help="Second text of each input.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Predict with a model, a version, or an alias."""
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
    """The options that the user set. They override the file's."""
    return {name: value for name, value in options.items() if value is not None}
