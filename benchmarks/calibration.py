"""How long it takes to try hundreds of settings: `make bench-calibrate`.

About a thousand held-out expressions at 480 x 640 with 100 candidates each, all settings of the
default grid, on one thread; beside it the time that refining them once per setting would take.
"""

import shutil
import tempfile
import time
from pathlib import Path

import click

from benchmarks.synthetic_run import EXPRESSIONS_PER_IMAGE, SIZE, make_run
from pipeline.commands import print_facts
from pipeline.engines import keep_freed_memory
from refine.calibration import CalibrateConfig, HeldOut, calibrate
from refine.probability import ProbabilityConfig
from refine.strategies import ChainLink, parse_chain, refine


@click.command()
@click.option("--expressions", default=1000, show_default=True)
def main(expressions: int) -> None:
    """Print seconds and settings."""
    keep_freed_memory()
    folder = Path(tempfile.mkdtemp(prefix="semires-bench-"))
    try:
        run_dir, config = folder / "run", CalibrateConfig(folds=2)
        make_run(run_dir, -(-expressions // EXPRESSIONS_PER_IMAGE), folds=2)
        document = calibrate(config, run_dir, 1)
        chain = parse_chain([ChainLink(strategy="cpi-u"), ChainLink(strategy="none")], "chain")
        started = time.monotonic()
        HeldOut(config, run_dir, None).visit(
            lambda predictions, known: refine(
                predictions.see(known.evidence, known.prediction, ProbabilityConfig()), chain
            )
        )
        once = time.monotonic() - started
    finally:
        shutil.rmtree(folder)
    seconds, settings = document["seconds"], document["settings"]
    facts = {
        "expressions": document["expressions"],
        "settings": settings,
        "seconds for all": seconds,
        "seconds to refine them once, without writing": once,
        "settings for the price of one": settings * once / seconds,
    }
    print_facts(f"calibration at {SIZE[0]} x {SIZE[1]}, one thread", facts)


if __name__ == "__main__":
    main()
