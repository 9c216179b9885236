"""Branches of a randomness: repeatable apart from what is drawn beside them, and never the same stream twice."""

from confide.crypto.random import SeededRandomness, SystemRandomness


def test_a_branch_does_not_see_what_is_drawn_beside_it():
    one, other = SeededRandomness("tree"), SeededRandomness("tree")
    left, right = one.branch(), other.branch()
    one.bytes(1000)
    assert left.bytes(64) == right.bytes(64)
    assert one.bytes(64) != other.bytes(64)  # the control: the stream itself does


def test_branches_and_their_source_are_different_streams_and_name_the_same_origin():
    source = SeededRandomness("tree")
    streams = [source.branch(), source.branch(), source.branch().branch(), source]
    assert len({stream.bytes(32) for stream in streams}) == 4
    assert {stream.origin for stream in streams} == {source.origin}
    assert "no privacy claim" in source.origin


def test_a_branch_of_the_operating_system_is_the_operating_system():
    branch = SystemRandomness().branch()
    assert isinstance(branch, SystemRandomness)
    assert branch.bytes(32) != branch.bytes(32)
