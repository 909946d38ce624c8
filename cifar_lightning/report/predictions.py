"""predictions.csv and predictions.json: what a checkpoint says about each image."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

from jaxtyping import Int64
from torch import Tensor

from cifar_lightning.analysis.label_errors import LabelErrors
from cifar_lightning.checkpoint.write import durable_file, write_durably
from cifar_lightning.metrics import Evaluation
from cifar_lightning.predictor import Prediction
from cifar_lightning.report.cells import cell


def write_predictions(
    path: Path,
    evaluation: Evaluation,
    targets: Int64[Tensor, " n"],
    classes: Sequence[str],
    *,
    augmented: Evaluation | None = None,
    errors: LabelErrors | None = None,
    files: Sequence[str] | None = None,
) -> None:
    """Write one line per image of an evaluation as CSV: index, target, pred, confidence, and 1 where they agree.

    Args:
        path: The file.
        evaluation: Of the images.
        targets: Their classes.
        classes: Names of the classes; they are written as ``cell`` has it.
        augmented: The evaluation with test-time augmentation; adds pred_tta and confidence_tta.
        errors: Labels that may be wrong; adds label_quality, and suspected_label, which has the class that an image
            seems to be of where its label is suspected.
        files: Paths of the images; add the column path.

    Raises:
        RunError: If the file cannot be written.
    """
    names = [cell(name) for name in classes]
    table: dict[str, list[Any]] = {
        "index": list(range(len(targets))),
        "target": [names[target] for target in targets.tolist()],
        "pred": [names[pred] for pred in evaluation.preds.tolist()],
        "confidence": [f"{confidence:.6f}" for confidence in evaluation.confidence.tolist()],
        "correct": (targets == evaluation.preds).int().tolist(),
    }
    if augmented is not None:
        table["pred_tta"] = [names[pred] for pred in augmented.preds.tolist()]
        table["confidence_tta"] = [f"{confidence:.6f}" for confidence in augmented.confidence.tolist()]
    if errors is not None:
        suggested = dict(zip(errors.index.tolist(), errors.suggested.tolist(), strict=True))
        table["label_quality"] = [f"{quality:.6f}" for quality in errors.quality.tolist()]
        table["suspected_label"] = [names[suggested[i]] if i in suggested else "" for i in range(len(targets))]
    if files is not None:
        table["path"] = [cell(file) for file in files]
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    write_durably(path, text.getvalue().encode())


class PredictionFiles:
    """predictions.csv and predictions.json while they are written, one picture after the other. ``writing`` opens them.

    Args:
        table: Receives the CSV.
        document: Receives the JSON.
        about: What is said in the JSON besides the predictions.
        classes: Names of the classes.
        topk: Number of classes named for each picture.
        save_probs: Whether the probability of every class is written.
    """

    def __init__(
        self,
        table: BinaryIO,
        document: BinaryIO,
        about: Mapping[str, Any],
        *,
        classes: Sequence[str],
        topk: int,
        save_probs: bool,
    ) -> None:
        self._table, self._document = table, document
        self._classes, self._save_probs = classes, save_probs
        self._names = {name: cell(name) for name in classes}
        ranks = ["", *(f"_{rank}" for rank in range(2, topk + 1))]
        self._columns = ["file", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability")), "error"]
        head = json.dumps(dict(about), indent=2, allow_nan=False)
        self._document.write(head.removesuffix("\n}").encode() + b',\n  "predictions": [')
        self._separator = b""
        self._write_row([*self._columns, *(cell(f"p:{name}") for name in classes if save_probs)])

    def add(self, file: str, prediction: Prediction) -> None:
        """Add what is said about a picture."""
        best = [text for name, prob in prediction.top for text in (self._names[name], f"{prob:.6f}")]
        probs = prediction.probs.tolist() if self._save_probs else []
        self._write_row([cell(file), *best, "", *(f"{prob:.6f}" for prob in probs)])
        entry: dict[str, Any] = {"file": file, "class": prediction.label, "probability": round(prediction.prob, 6)}
        entry["top"] = [{"class": name, "probability": round(prob, 6)} for name, prob in prediction.top]
        if probs:
            entry["probabilities"] = {name: round(prob, 6) for name, prob in zip(self._classes, probs, strict=True)}
        self._write_entry(entry)

    def add_problem(self, file: str, reason: str) -> None:
        """Add a file that is no image."""
        num_probs = len(self._classes) if self._save_probs else 0
        self._write_row([cell(file), *[""] * (len(self._columns) - 2), cell(reason), *[""] * num_probs])
        self._write_entry({"file": file, "error": reason})

    def close(self) -> None:
        """Write the end of the JSON."""
        self._document.write(b"\n  ]\n}\n")

    def _write_row(self, row: Sequence[str]) -> None:
        text = StringIO(newline="")
        csv.writer(text).writerow(row)
        self._table.write(text.getvalue().encode())

    def _write_entry(self, entry: Mapping[str, Any]) -> None:
        self._document.write(self._separator + b"\n    " + json.dumps(entry, allow_nan=False).encode())
        self._separator = b","


@contextmanager
def writing(folder: Path, about: Mapping[str, Any], **options: Any) -> Iterator[PredictionFiles]:
    """Write predictions.csv and predictions.json into a folder; they have their names once they are whole.

    Args:
        folder: The folder.
        about: What is said in the JSON besides the predictions: at least one plain value by name.
        options: Of ``PredictionFiles``.

    Raises:
        RunError: If they cannot be written.
    """
    with durable_file(folder / "predictions.csv") as table, durable_file(folder / "predictions.json") as document:
        files = PredictionFiles(table, document, about, **options)
        yield files
        files.close()
