"""The verb ``diagnose``: saved predictions become one page, a report and tables."""

from __future__ import annotations

from json import dumps
from pathlib import Path

from rich.console import Console

from detframe.refusals import refuse


def diagnose(
    run: Path | None = None,
    out: Path | None = None,
    predictions: Path | None = None,
    data: Path | None = None,
    aim: str = "f1",
    ious: list[float] | None = None,
    measured: int = 1000,
    replicates: int = 200,
    seed: int = 0,
    wandb: bool | None = None,
    json: bool = False,
) -> int:
    """Show what a detector gets wrong, why, and what to do about it, from its saved predictions.

    `detframe diagnose RUN` takes the folder of a run that `fit` or `test` wrote, such as runs/quickstart/version_0. For
    any other detector, give --predictions (COCO results) and --data. The network is never asked.

    After `detframe test --embeddings.write true` it also says why each mistake happened: an annotation issue, a gap in
    the training data, or a limit of the model.

    Written to OUT: index.html, one page that works offline; report.json, its figures; predictions.parquet, the table of
    detections and objects with what is wrong with each; images.parquet; slices.parquet.

    The same goes to Weights & Biases, as a run of job type `diagnosis`, where RUN was logged there, with its settings:
    offline, or to its server.

    Exit code: 0 when they are written; 2 when the input cannot be used.

    Args:
        run: Folder of a run, with its test_predictions.parquet or val_predictions.parquet.
        out: Folder to write; by default `diagnosis` in RUN, or beside the predictions.
        predictions: COCO results of any detector, with the ids of --data.
        data: The data set that was evaluated, as `detframe check` takes it; by default the run's own. Where its images
            are not found, the page has no pictures.
        aim: What the threshold of each class is chosen for: f1, precision=0.95 (the most recall with it), recall=0.9
            (the most precision), or cost=1:10 (the least cost, of a false alarm to that of a miss).
        ious: Give AP and the best F1 at these IoUs too, besides 0.5, 0.55 ... 0.95.
        measured: So many images are read to slice by brightness, blur and noise; 0 reads none.
        replicates: Of the bootstrap, behind all intervals.
        seed: Of the bootstrap.
        wandb: Log to W&B, also what was not logged before (offline then, beside the report); false does not log. By
            default as RUN was.
        json: Print the report as JSON and nothing else.
    """
    from detframe.analysis.diagnosis import diagnose_rows, parse_aim
    from detframe.analysis.diagnosis_page import write_diagnosis
    from detframe.analysis.evaluation import read_results, read_run
    from detframe.analysis.report import report, summary_tables, write_tables
    from detframe.analysis.slicing import image_properties
    from detframe.analysis.verdicts import judge_run
    from detframe.analysis.wandb_report import log_diagnosis, logger_settings
    from detframe.data.annotations import DataError
    from detframe.data.images import ImageError

    console = Console(stderr=True, quiet=json, highlight=False)
    try:
        chosen = parse_aim(aim)
        wanted = [0.1, 0.3] if ious is None else ious
        if any(not 0 < iou < 1 for iou in wanted):
            raise DataError(f"--ious has {wanted}; give IoUs above 0 and below 1.")
        if run is not None and predictions is None:
            evaluation = read_run(run, data)
            folder = out or run / "diagnosis"
        elif run is None and predictions is not None and data is not None:
            evaluation = read_results(predictions, data)
            folder = out or predictions.parent / "diagnosis"
        else:
            raise DataError("Give the folder of a run, or --predictions and --data for another detector's results.")
        with console.status("Reading images") as status:
            of_images = image_properties(evaluation, measured)
            status.update("Counting")
            diagnosis = diagnose_rows(evaluation, chosen, wanted, of_images, replicates, seed)
            verdicts = None if run is None else judge_run(evaluation, diagnosis, data or run / "config.yaml")
            figures = report(evaluation, diagnosis, verdicts, aim)
            folder.mkdir(parents=True, exist_ok=True)
            write_diagnosis(
                folder / "index.html", evaluation, diagnosis, verdicts, lambda what: status.update(f"Drawing {what}")
            )
            (folder / "report.json").write_text(dumps(figures, indent=1), encoding="utf-8")
            write_tables(folder, evaluation, diagnosis, verdicts, of_images)
            settings = None if run is None or wandb is False else logger_settings(run)
            logged = None
            if wandb or settings is not None:
                status.update("Logging to W&B")
                logged = log_diagnosis(settings, run, folder, evaluation, diagnosis, figures)
    except (DataError, ImageError, ValueError, OSError) as error:
        return refuse(error, json)
    if json:
        print(dumps(figures))
    else:
        Console(highlight=False).print(*summary_tables(evaluation, diagnosis))
        said = "" if logged is None else f"\nLogged to W&B in {logged}"
        Console(highlight=False, markup=False).print(f"Written to {folder / 'index.html'}{said}", soft_wrap=True)
    return 0
