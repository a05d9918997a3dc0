"""The model card beside an export: what a run, its data and its proofs know of a detector, and what a person says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from detframe.analysis.diagnosis import diagnose_rows
from detframe.analysis.evaluation import read_run
from detframe.analysis.markdown import markdown_table
from detframe.analysis.report import report
from detframe.analysis.slicing import image_properties
from detframe.curation.lineage import read_lineage
from detframe.data.annotations import DataError
from detframe.data.checks import find_faults
from detframe.data.sources import configuration_block, read_splits
from detframe.data.yaml_files import read_yaml
from detframe.metrics.operating_points import best_f1

CARD, CARD_JSON = "MODEL_CARD.md", "model_card.json"
_GIVEN = ("intended_use", "limits", "licences")
_REPLICATES = 200
_WORST_SLICES = 5
_NOT_SAID = "Not stated. Say it in a YAML file, with --card."


def read_given(path: Path | None) -> dict[str, Any]:
    """What a person says of a model: ``intended_use``, ``limits`` and ``licences`` (by what they are of).

    Raises:
        DataError: The file cannot be read, or says something else.
    """
    if path is None:
        return {}
    content = read_yaml(path) or {}
    unknown = [str(key) for key in content if key not in _GIVEN] if isinstance(content, dict) else [str(content)]
    if unknown or not isinstance(content.get("licences", {}), dict):
        wrong = repr(unknown[0]) if unknown else "licences without names"
        raise DataError(
            f"{path}: has {wrong}. A card is given {', '.join(_GIVEN)}; licences are by name, such as {{data: MIT}}. "
            "All else the run knows."
        )
    return dict(content)


def card_of(run: Path, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known of the artefacts of a folder, as a document.

    Args:
        run: Folder of the run that they were exported from.
        folder: With ``*.proof.json`` beside each artefact.
        given: As :func:`read_given` has it.
    """
    config = _yaml(run / "config.yaml")
    proofs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("model.*.proof.json"))]
    proofs = [proof for proof in proofs if (folder / proof["artefact"]).exists()]
    for proof in proofs:
        proof.pop("per_image", None)
    return {
        "run": str(run),
        "class_names": proofs[0]["metadata"]["class_names"] if proofs else [],
        **{name: given.get(name) for name in ("intended_use", "limits")},
        "data": _data(run),
        "metrics": _metrics(run),
        "artefacts": proofs,
        "licences": {**_licences(config), **given.get("licences", {})},
        "reproduce": {
            "config": str(run / "config.yaml") if config else None,
            "seed": config.get("seed_everything"),
            "levers": {
                name: lever["hash"]
                for name, lever in _json(run / "levers.json").items()
                if isinstance(lever, dict) and "hash" in lever
            },
        },
    }


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write both files; older ones are replaced."""
    (folder / CARD_JSON).write_text(json.dumps(card, indent=1), encoding="utf-8")
    (folder / CARD).write_text(as_markdown(card), encoding="utf-8")


def as_markdown(card: Mapping[str, Any]) -> str:
    """The card as a person reads it."""
    names = ", ".join(card["class_names"])
    parts = [
        f"# Model card: {'/'.join(Path(card['run']).resolve().parts[-2:])}",
        f"A detector of {names}.",
        "## Intended use",
        card["intended_use"] or _NOT_SAID,
        "## Limits",
        card["limits"] or _NOT_SAID,
        "## Data",
        *_data_section(card["data"]),
        "## Metrics",
        *_metrics_section(card["metrics"]),
        "## Artefacts",
        *_artefacts_section(card["artefacts"]),
        "## Licences",
        markdown_table(["of", "licence"], [[name, str(licence)] for name, licence in card["licences"].items()]),
        "## Reproduce",
        *_reproduce_section(card["reproduce"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _data(run: Path) -> dict[str, Any] | None:
    """Splits with their hashes, what the data were made of, and the faults that `check` knows in them."""
    splits = _json(run / "data_manifest.json").get("splits")
    if splits is None:
        return None
    known: dict[str, Any] = {"splits": splits, "faults": None, "lineage": None}
    try:
        faults = find_faults(read_splits(run / "config.yaml"), headers_only=True)
        known["faults"] = dict(Counter(f"{fault.severity}: {fault.kind}" for fault in faults))
    except DataError as error:
        known["faults_unknown"] = str(error)
    block = configuration_block(run / "config.yaml")
    lineage = read_lineage(Path((block or {}).get("root") or "."))
    if lineage:
        known["lineage"] = {name: lineage.get(name) for name in ("when", "counts", "without_review", "people")}
    return known


def _metrics(run: Path) -> dict[str, Any] | None:
    """Figures of the run's test, or else validation, as `diagnose` has them."""
    try:
        evaluation = read_run(run)
    except DataError:
        return None
    stage = Path(evaluation.source).name.partition("_")[0]
    diagnosis = diagnose_rows(evaluation, best_f1, [], image_properties(evaluation, 0), _REPLICATES, seed=0)
    figures = report(evaluation, diagnosis, None, "f1")
    return {
        "split": stage,
        "checkpoint_hash": _json(run / f"{stage}_metrics.json").get("checkpoint_hash"),
        **{name: figures[name] for name in ("images", "objects", "map", "map_50", "map_75", "map_interval")},
        "detection_ece": figures["calibration"]["detection_ece"],
        "per_class": {
            name: {key: row[key] for key in ("ap", "ap_interval", "ap_50", "images", "instances")}
            for name, row in figures["per_class"].items()
        },
        "worst_slices": [
            {"property": part["property"], "value": part["value"], "cost": part["cost"]}
            | {f"{side}_{key}": part[side][key] for side in ("recall", "precision") for key in ("share", "total")}
            for part in figures["slices"][:_WORST_SLICES]  # the surest to be worse than the rest come first
        ],
    }


def _licences(config: Mapping[str, Any]) -> dict[str, str]:
    """Of the weights that training began with, as far as timm knows it."""
    model = config.get("model") or {}
    found = {"data": _NOT_SAID}
    backbone = ((model.get("backbone") or {}).get("init_args")) or {}
    if backbone.get("name") and backbone.get("weights"):
        known = timm.models.get_pretrained_cfg(backbone["name"])
        said = (known.license if known is not None else None) or "not known to timm"
        where = (
            ""
            if backbone["weights"] == "imagenet"
            else f", as timm has it; the file is {Path(backbone['weights']).name}"
        )
        found[f"weights of {backbone['name']}"] = f"{said}{where}"
    if model.get("init_from"):
        found[f"weights of {Path(model['init_from']).name}"] = _NOT_SAID
    return found


def _data_section(data: Mapping[str, Any] | None) -> list[str]:
    if data is None:
        return ["Not known: the run has no data_manifest.json."]
    rows = [
        [name, str(split["images"]), str(split["boxes"]), split["hash"][:16], str(split["source"])]
        for name, split in data["splits"].items()
    ]
    parts = [markdown_table(["split", "images", "boxes", "hash", "source"], rows)]
    if data["lineage"]:
        applied = data["lineage"]["counts"].get("applied", {})
        parts.append(f"Made by `detframe apply` on {data['lineage']['when']}; applied: {json.dumps(applied)}.")
    if data["faults"] is None:
        parts.append(f"Known faults: not known. {data['faults_unknown']}")
    else:
        counts = ", ".join(f"{count} of {kind}" for kind, count in data["faults"].items())
        parts.append(f"Known faults, by `detframe check`: {counts or 'none'}.")
    return parts


def _metrics_section(metrics: Mapping[str, Any] | None) -> list[str]:
    if metrics is None:
        return ["Not known: the run has no table of test predictions. Run `detframe test`."]
    low, high = metrics["map_interval"]
    parts = [
        f"On the {metrics['split']} split, {metrics['images']} images with {metrics['objects']} objects, by the "
        f"checkpoint {str(metrics['checkpoint_hash'])[:16]}: mAP {metrics['map']:.4f} (95 % interval {_share(low)} to "
        f"{_share(high)}), mAP@0.5 {metrics['map_50']:.4f}, mAP@0.75 {metrics['map_75']:.4f}; calibration error D-ECE "
        f"{_share(metrics['detection_ece'])}."
    ]
    rows = [
        [
            name,
            _share(row["ap"]),
            *(_share(end) for end in row["ap_interval"]),
            _share(row["ap_50"]),
            str(row["instances"]),
        ]
        for name, row in metrics["per_class"].items()
    ]
    parts.append(markdown_table(["class", "AP", "from", "to", "AP@0.5", "objects"], rows))
    if metrics["worst_slices"]:
        parts.append("Slices of the data, the surest to be worse than the rest, at the thresholds of the best F1:")
        rows = [
            [
                f"{part['property']}: {part['value']}",
                f"{100 * part['cost']:.2f}",
                f"{_share(part['recall_share'])} of {part['recall_total']:.0f}",
                f"{_share(part['precision_share'])} of {part['precision_total']:.0f}",
            ]
            for part in metrics["worst_slices"]
        ]
        parts.append(markdown_table(["slice", "costs, AP points", "recall", "precision"], rows))
    return parts


def _artefacts_section(proofs: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            proof["artefact"],
            proof["metadata"]["precision"],
            "-" if proof["map"] is None else f"{proof['map']:.5f}",
            "-" if proof["map_checkpoint"] is None else f"{proof['map_checkpoint']:.5f}",
            f"{proof['detections'] - proof['unmatched']} of {proof['detections']}",
            f"{proof['milliseconds'] / proof['milliseconds_checkpoint']:.2f}",
            f"{proof['megabytes']:.1f}",
            "yes" if proof["metadata"]["calibrated"] else "no",
        ]
        for proof in proofs
    ]
    columns = ("file", "precision", "mAP", "of the checkpoint", "equal detections", "time to eager", "MB", "calibrated")
    parts = [markdown_table(columns, rows)]
    for proof in proofs[:1]:
        about = proof["metadata"]
        height, width = about["image_size"]
        said = ", ".join(f"{name} {value:.3f}" for name, value in about["thresholds"].items())
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        parts.append(
            f"Proven on {proof['images']} images of {proof['data'] or 'no data set'}. The network sees {height} x "
            f"{width} pixels. Operating thresholds: {said or 'none chosen'}. Checkpoint "
            f"{about['checkpoint_hash'][:16]}; {versions}."
        )
    return parts


def _reproduce_section(reproduce: Mapping[str, Any]) -> list[str]:
    if reproduce["config"] is None:
        return ["Not known: the run has no config.yaml."]
    parts = [f"    python -m detframe fit --config {reproduce['config']}", f"Seed {reproduce['seed']}."]
    if reproduce["levers"]:
        rows = [[name, digest[:16]] for name, digest in reproduce["levers"].items()]
        parts.append(markdown_table(["lever", "hash of its settings"], rows))
    return parts


def _share(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.4f}"


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
