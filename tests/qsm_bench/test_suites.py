"""The suites: their tasks can be made, and their protocols fit."""

import pytest

from envs import close, find_task, make
from qsm_bench.errors import UserError
from qsm_bench.suites import SUITES, Suite, find_suite

each_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)


class TestSuites:
    @each_suite
    def test_its_tasks_are_found_under_their_own_names(self, suite: Suite) -> None:
        assert suite.tasks
        assert len(set(suite.tasks)) == len(suite.tasks)
        assert tuple(find_task(name).name for name in suite.tasks) == suite.tasks

    @each_suite
    def test_its_first_task_can_be_made(self, suite: Suite) -> None:
        close(make(suite.tasks[0]))

    @pytest.mark.slow
    @each_suite
    def test_all_its_tasks_can_be_made(self, suite: Suite) -> None:
        for name in suite.tasks:
            close(make(name))

    @each_suite
    def test_its_protocol_ends_with_an_evaluation(self, suite: Suite) -> None:
        assert suite.protocol.steps % suite.protocol.eval_every == 0
        assert len(suite.seeds) > 1

    @each_suite
    def test_it_is_found_by_its_name(self, suite: Suite) -> None:
        assert find_suite(suite.name) is suite

    def test_an_unknown_one_is_refused_with_similar_names(self) -> None:
        with pytest.raises(UserError, match="unknown suite 'dmc_eazy': did you mean 'dmc_easy"):
            find_suite("dmc_eazy")

    def test_one_that_is_like_no_other_is_refused_with_all_names(self) -> None:
        with pytest.raises(UserError, match=f"'xyz'.*{', '.join(SUITES)}"):
            find_suite("xyz")
