"""Options of networks that no network can have are refused in one line, before one is built."""

from typing import get_args, get_type_hints

import pytest

from pipeline.errors import ConfigError
from train.network_sizes import SIZES, longest_sentence

NUMBERS = [
    (network, name)
    for network, sizes in SIZES.items()
    for name, hint in get_type_hints(type(sizes["base"])).items()
    if {int, float} & {hint, *get_args(hint)} and "tuple" not in str(hint)
]


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(("network", "name"), NUMBERS)
def test_numbers_below_their_range_are_refused(network, name, value):
    if value == 0 and name.endswith(("dropout", "drop_path_rate")):
        assert longest_sentence(network, "base", {name: value}) > 0
        return
    with pytest.raises(ConfigError, match=f"{name}: expected .*, found {value}"):
        longest_sentence(network, "base", {name: value})


@pytest.mark.parametrize("name", ["drop_path_rate", "fusion_dropout", "text_dropout"])
def test_a_rate_of_one_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: expected a number in"):
        longest_sentence("lavt", "base", {name: 1})
