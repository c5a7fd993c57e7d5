"""Tensors: out of band, zero-copy over a private mapping."""

from __future__ import annotations

import mmap
import os

import pytest

from shoal._core.serialization import deserialize, serialize

torch = pytest.importorskip("torch", reason="torch is not installed")


def roundtrip(value):
    return deserialize(serialize(value).to_bytes())


DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype):
    tensor = torch.ones(1000).to(getattr(torch, dtype))
    serialized = serialize({"t": tensor})
    assert len(serialized.pieces) > 2  # out of band
    back = deserialize(serialized.to_bytes())["t"]
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12).reshape(3, 4).T,
        torch.arange(12)[::2],
        torch.tensor(5),
        torch.empty(0),
        torch.empty(0, 3),
        torch.arange(1000)[500:],
        torch.ones(2, 3).expand(4, 2, 3),
        torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (2,), check_invariants=True).coalesce(),
        torch.randn(3, dtype=torch.complex64).conj(),
    ],
    ids=lambda t: f"{tuple(t.shape)}-{t.layout}",
)
def test_unusual_shapes_and_layouts(tensor):
    back = roundtrip(tensor)
    assert back.shape == tensor.shape
    assert torch.equal(back.to_dense() if back.is_sparse else back, tensor.to_dense() if tensor.is_sparse else tensor)


def test_a_small_view_does_not_take_its_storage_along():
    assert serialize(torch.arange(100_000)[:10]).nbytes < 2000


def test_views_of_one_storage_share_it_again():
    base = torch.zeros(100)
    one, two = roundtrip([base, base[:60]])
    one[0] = 5
    assert two[0] == 5


def test_gradients_and_parameters():
    assert roundtrip(torch.ones(3, requires_grad=True)).requires_grad
    parameter = roundtrip(torch.nn.Parameter(torch.ones(3)))
    assert isinstance(parameter, torch.nn.Parameter)
    assert parameter.requires_grad
    assert not roundtrip(torch.nn.Parameter(torch.ones(3), requires_grad=False)).requires_grad


def test_a_module_with_tied_weights():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    back = roundtrip(model)
    assert back[1].weight is back[0].weight
    x = torch.ones(1, 3)
    assert torch.equal(model(x), back(x))


def test_a_tensor_read_from_a_message_can_be_written_to():
    data = serialize(torch.zeros(10)).to_bytes()
    back = deserialize(data)
    back += 1
    assert torch.equal(deserialize(data), torch.zeros(10))


def test_a_tensor_in_the_store_is_a_private_view():
    serialized = serialize({"t": torch.zeros(1000), "n": 1})
    fd = os.memfd_create("arena")
    os.ftruncate(fd, serialized.nbytes)
    serialized.write_to(fd, 0)
    shared = mmap.mmap(fd, serialized.nbytes, access=mmap.ACCESS_READ)
    private = mmap.mmap(fd, serialized.nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(fd)
    asked = []

    def writable_view():
        asked.append(1)
        return memoryview(private)

    back = deserialize(memoryview(shared), writable_view)["t"]
    assert asked == [1]
    back += 1
    assert float(back.sum()) == 1000
    assert float(deserialize(memoryview(shared))["t"].sum()) == 0
    with pytest.raises(BufferError):
        private.close()  # the tensor holds the mapping


def test_values_without_tensors_need_no_private_mapping():
    data = serialize([b"x", {"a": 1}]).to_bytes()
    assert deserialize(data, lambda: pytest.fail("not needed")) == [b"x", {"a": 1}]
