"""A search as a page: what is best and how it is typed, pictures, and all trials."""

import matplotlib as mpl
from markupsafe import Markup

from cifar_lightning.report import html
from cifar_lightning.search import charts
from cifar_lightning.search.results import MIN_FOR_IMPORTANCE, Results, conclusion, rows

ABOUT = (
    "Trials are compared by val/acc of their last weights, on validation images alone. The best of many looks better "
    "there than it is: its test accuracy stands in the metrics.json of its folder, and nothing was chosen by it.",
    "A pruned trial ended early, as others were better after as many epochs; of several seeds the first one decides.",
)


def page(found: Results, title: str, again: str) -> str:
    """The page.

    Args:
        found: What is shown.
        title: Stands above.
        again: The command that continues the search.
    """
    return html.page(
        "search.html",
        title=title,
        conclusion=conclusion(found),
        command=found.command,
        charts=_charts(found),
        fixed=found.space.fixed,
        space=[f"{one.key}={one.spelled}" for one in found.space.parameters],
        trials=rows(found).for_page(),
        about=(*ABOUT, _about_importance(found)),
        again=again,
    )


def _about_importance(found: Results) -> str:
    if found.importances:
        return "Importance is PED-ANOVA: how the values of the better trials differ from those of all."
    if found.count("complete") < MIN_FOR_IMPORTANCE:
        return f"The importance of keys is shown from {MIN_FOR_IMPORTANCE} complete trials on: here are too few."
    return "The importance of keys cannot be told from these trials, such as where all have the same accuracy."


def _charts(found: Results) -> list[tuple[Markup, str]]:
    """Pictures with what is said below them."""
    if not any(trial.acc is not None for trial in found.trials):
        return []
    made = []
    with mpl.rc_context(html.STYLE):
        figure = charts.history(found)
        made.append(
            (html.svg(figure, "validation accuracy by trial"), "Each dot is a trial, the line the best so far.")
        )
        if found.importances:
            figure = charts.importances(found)
            made.append((html.svg(figure, "importance of each key"), "How much the accuracy depends on each key."))
        if found.count("complete") > 1:
            figure = charts.parallel(found)
            caption = "Each line is a complete trial, the stronger the better; the thick one is the best."
            made.append((html.svg(figure, "all complete trials in parallel coordinates"), caption))
    return made
