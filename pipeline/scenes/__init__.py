"""The embedded data set: seeded, photo-like scenes with referring expressions and exact masks.

`scene.make_scene` makes one scene, `write.write_scenes` a data set in the user's own format.
"""
