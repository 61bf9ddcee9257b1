"""Shell: what `prepare-data` would do with a config, without doing it."""

from pipeline.data_config import DataConfig
from pipeline.errors import ManifestError
from pipeline.manifest import DESCRIPTION, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place, is_local
from pipeline.prepare import deciding, input_hashes, refuse_missing, refuse_other


def plan_data(config: DataConfig, run_dir: Place, *, limit: int | None = None) -> str | None:
    """Say what a manifest holds that is there and of this config; None if there is none yet.

    Reads the files of annotations and of the manifest, to know whether they are those of then;
    writes nothing.

    Args:
        config: Which data set, and how.
        run_dir: Where `manifest/` is or would be.
        limit: As `prepare_data` takes it.

    Raises:
        ManifestError: If a file or folder that the config names is missing, or the manifest there
            is damaged, or of another config: names the differences.
    """
    folder = RunPaths(run_dir).manifest
    request = {"config": deciding(config), "inputs": input_hashes(config), "limit": limit}
    if not (folder if is_local(folder) else folder / DESCRIPTION).exists():
        refuse_missing(config.links_into)
        if config.images is not None and not config.images.is_dir():
            raise ManifestError(
                f"expected the folder data.images at {config.images}, found none; check the path"
            )
        return None
    refuse_other(folder, request)
    manifest = load_manifest(folder, verify=True)
    return f"{manifest.num_images} images, {manifest.num_objects} objects"
