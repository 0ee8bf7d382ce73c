"""The number of threads is restored, also after an error."""

import pytest
import torch

from cxlp.utils.threads import one_thread


def test_one_thread_inside_the_context_and_the_earlier_number_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
