"""The errors that a user can cause, each printed as one line.

    ValueError
    └── SemiresError            expected, found, where, what to do
        ├── ConfigError         stages.yaml or --set
        ├── ManifestError       data sets and the manifest
        ├── StoreError          Zarr stores, plans and done records
        └── ItemError           one bad image, expression or mask: recorded, never ends a run

Every command catches `SemiresError`, prints it and exits with 1.
"""


class SemiresError(ValueError):
    """Base of every error whose message is meant for the user, on one line."""


class ConfigError(SemiresError):
    """A configuration that cannot be used."""


class ManifestError(SemiresError):
    """A data set or manifest that cannot be used as a whole."""


class StoreError(SemiresError):
    """A store, plan or done record that is missing, damaged or made otherwise."""


class ItemError(SemiresError):
    """One item that cannot be used; the run records it and goes on."""
