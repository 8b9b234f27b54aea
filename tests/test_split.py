"""Splits: disjoint, complete, reproducible, and alike in volume and classes."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibrain.data.split import Split, _merge_rare, load, save, split_cases
from minibrain.errors import InputError


def case(number, *voxels):
    """A case with one background voxel and these numbers of tumour voxels per class."""
    return SimpleNamespace(name=f"CASE_{number:03d}", voxels=(1, *voxels))


def synthetic(count, seed=0):
    """Log-normal tumours, of which some lack a class and a few lack all."""
    random = np.random.default_rng(seed)
    volumes = random.lognormal(9, 1, (count, 3)).astype(int) + 1
    volumes *= random.random((count, 3)) < (0.99, 0.8, 0.7)
    return [case(i, *row.tolist()) for i, row in enumerate(volumes)]


def counts(split):
    return tuple(map(len, split))


any_cases = st.lists(
    st.tuples(*[st.sampled_from([0, 0, 1, 7, 50, 400])] * 3), min_size=3, max_size=60
).map(lambda rows: [case(i, *row) for i, row in enumerate(rows)])


@given(any_cases, st.integers(0, 2**32 - 1))
def test_every_case_is_in_exactly_one_part_and_no_part_is_empty(cases, seed):
    split = split_cases(cases, seed=seed)
    assert sorted(name for part in split for name in part) == [case.name for case in cases]
    assert min(counts(split)) >= 1
    assert split.validation == tuple(sorted(split.validation))


@given(any_cases, st.randoms(use_true_random=False))
def test_the_order_of_the_cases_does_not_matter(cases, random):
    shuffled = random.sample(cases, len(cases))
    assert split_cases(shuffled) == split_cases(cases)


def test_the_seed_decides():
    cases = synthetic(40)
    assert split_cases(cases, seed=1) == split_cases(cases, seed=1)
    assert split_cases(cases, seed=1) != split_cases(cases, seed=2)
    assert split_cases(cases) == split_cases(cases, seed=1748)


def test_420_cases_become_336_42_42():
    assert counts(split_cases(synthetic(420))) == (336, 42, 42)


@pytest.mark.parametrize(
    ("count", "expected"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (10, (8, 1, 1)), (15, (11, 2, 2))]
)
def test_small_numbers_leave_no_part_empty(count, expected):
    assert counts(split_cases(synthetic(count))) == expected


@pytest.mark.parametrize("seed", range(5))
def test_each_part_has_its_share_of_every_quartile_and_of_every_class(seed):
    cases = synthetic(420, seed)
    volumes = {case.name: sum(case.voxels[1:]) for case in cases}
    quartile = {name: rank * 4 // 420 for rank, name in enumerate(sorted(volumes, key=volumes.get))}
    split = split_cases(cases, seed=seed)
    for part in split:
        shares = Counter(quartile[name] for name in part)
        # Unstratified, the share of 42 cases in a quartile would stray by 2.7 (one sigma).
        assert all(abs(shares[q] - len(part) / 4) <= 3 for q in range(4))
        for label in (1, 2, 3):
            having = {case.name for case in cases if case.voxels[label]}
            expected = len(part) * len(having) / 420
            assert abs(len(having & set(part)) - expected) <= 3


def test_strata_of_ten_cases_each_are_divided_exactly():
    """Four volumes x two sets of classes, ten cases of each: one goes to validation, one to test.

    Asked of many seeds, because chance alone gives it once in 10^5 draws.
    """
    cases = [
        case(100 * q + 10 * has + i, 4 * 10**q, 2 * has, 0)
        for q in range(4)
        for has in (0, 1)
        for i in range(10)
    ]
    for seed in range(5):
        split = split_cases(cases, seed=seed)
        for part, each in zip(split, (8, 1, 1), strict=True):
            assert set(Counter(name[:-1] for name in part).values()) == {each}
            assert len({name[:-1] for name in part}) == 8


@pytest.mark.parametrize("voxels", [(0, 0, 0), (5, 5, 5)])
def test_cases_all_without_tumour_or_all_alike_can_be_split(voxels):
    assert counts(split_cases([case(i, *voxels) for i in range(20)])) == (16, 2, 2)


def test_cases_without_tumour_are_shared_out():
    cases = synthetic(80)[:60] + [case(100 + i, 0, 0, 0) for i in range(20)]
    split = split_cases(cases)
    assert [sum(name >= "CASE_100" for name in part) for part in split] == [16, 2, 2]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40),
    st.integers(1, 20),
)
def test_merged_strata_are_unions_large_enough_and_few_enough(strata, most):
    merged = _merge_rare(strata, most)
    assert len(merged) == len(strata)
    assert len(set(merged)) <= most
    assert min(Counter(merged).values()) >= 2
    assert len(set(zip(strata, merged, strict=True))) == len(set(strata))


def test_strata_that_need_no_merging_stay_apart():
    assert _merge_rare(["b", "a", "a", "c", "b", "c"], 3) == [1, 0, 0, 2, 1, 2]


def test_a_rare_stratum_joins_the_smaller_neighbour():
    assert _merge_rare([*"aaabccddd"], 9) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_cases_are_refused(count):
    with pytest.raises(InputError, match=f"got {count} cases, expected at least 3"):
        split_cases(synthetic(count))


def test_a_case_given_twice_is_refused():
    cases = synthetic(5)
    with pytest.raises(InputError, match="CASE_002"):
        split_cases([*cases, cases[2]])


def test_a_saved_split_loads_equal_and_leaves_no_other_file(tmp_path):
    split = split_cases(synthetic(12))
    path = tmp_path / "splits.json"
    save(Split(("old",), (), ()), path)
    save(split, path)
    assert load(path) == split
    assert load(path, [case.name for case in synthetic(12)]) == split
    assert list(tmp_path.iterdir()) == [path]
    assert list(json.loads(path.read_text())) == ["train", "validation", "test"]


def test_unknown_names_are_refused(tmp_path):
    save(Split(("a",), ("b",), ("c",)), tmp_path / "splits.json")
    with pytest.raises(InputError, match=r"splits.json: unknown cases \['c'\]"):
        load(tmp_path / "splits.json", {"a", "b", "d"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "expected the keys"),
        ('{"train": []}', "expected the keys"),
        ('{"train": [], "validation": [], "test": [], "more": []}', "expected the keys"),
        ('{"train": "abc", "validation": ["b"], "test": ["c"]}', "list of case names"),
        ('{"train": [1], "validation": ["b"], "test": ["c"]}', "list of case names"),
        ('{"train": ["a"], "validation": ["b"], "test": []}', "list of case names, not empty"),
        (
            '{"train": ["a"], "validation": ["a"], "test": ["c"]}',
            r"\['a'\] are named more than once",
        ),
    ],
)
def test_damaged_splits_are_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"splits.json: .*{reason}"):
        load(path)


def test_a_missing_split_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"absent.json"):
        load(tmp_path / "absent.json")
