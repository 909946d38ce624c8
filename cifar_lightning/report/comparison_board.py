"""A comparison for TensorBoard: its tables as text, its plot as an image.

There are no scalars and no hyper-parameters: the HPARAMS tab would take them for another run's.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from cifar_lightning.report.comparison import Comparison
from cifar_lightning.report.comparison_plot import Colors, runs_plot

_SUFFIX = ".compare"
"""How the names of its own event files end, by which they are told from those of others."""

_STYLE: Any = {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}


def write_board(folder: Path, comparison: Comparison, text: str) -> None:
    """Write an event file in place of an earlier comparison's.

    Args:
        folder: Holds no run.
        comparison: What is drawn.
        text: What is said, as Markdown.

    Raises:
        OSError: If it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from torch.utils.tensorboard import SummaryWriter

    from cifar_lightning.patches import silent_event_writer

    for path in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
        path.unlink()
    with silent_event_writer(), SummaryWriter(str(folder), filename_suffix=_SUFFIX) as writer:
        writer.add_text("comparison", text)
        if any(comparison.metric in row.summaries for row in comparison.rows):
            with mpl.rc_context(_STYLE):
                canvas = FigureCanvasAgg(runs_plot(comparison, Colors()))
                canvas.draw()
            writer.add_image("comparison/runs", np.asarray(canvas.buffer_rgba())[..., :3], dataformats="HWC")
