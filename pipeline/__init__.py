"""The ground floor: config, manifest, stores, the stage runner, SAM candidates, inspection."""
