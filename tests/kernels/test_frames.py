"""Coder "inter": lossless at awkward sizes, the same from NumPy and C++, key frames, what refers to what, and rate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from _frames import FIXED, IMPLEMENTATIONS, check, encode, header, keys, modes, video
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.bitstream import Scaling
from latentseg.bitstream.anatomy import dissect
from latentseg.bitstream.context_model import costs, level, table_map
from latentseg.bitstream.context_payload import plan_tiles, unpack_context
from latentseg.errors import ArtifactError, InputError, UsageError
from latentseg.kernels import entropy
from latentseg.kernels.frames import FrameDecoder, FrameEncoder, is_key

# --- lossless ---------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1), (3, 1, 17), (2, 9, 1), (5, 9, 13), (40, 3, 5), (6, 17, 33)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [(4, 6), (16, 1), (1, 16), (14, 32)])
def test_sizes_and_tiles(shape: tuple[int, int, int], tile: tuple[int, int]) -> None:
    check(video(shape, 4), header(shape, tile=tile))


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_bit_length(bits: int) -> None:
    check(video((5, 6, 11), 4, bits), header((5, 6, 11), bits))


@pytest.mark.parametrize("scaling", [
    Scaling("tensor"), Scaling("channel"), FIXED, Scaling("codebook", centres=tuple(float(i) for i in range(11))),
], ids=lambda scaling: scaling.mode)  # fmt: skip
def test_scalings(scaling: Scaling) -> None:
    h = header((5, 6, 11), 4, scaling=scaling)
    frames = [np.minimum(q, 10).astype(np.uint8) for q in video((5, 6, 11), 5, 4)]
    payloads = check(frames, h, None, *(() if scaling.mode in ("fixed", "codebook") else (-1.0, 2.0)))
    assert keys(payloads, h) == [0]
    for payload in payloads:
        assert dissect(payload, h).lanes < len(payload)


@pytest.mark.parametrize("scaling", [Scaling("tensor"), Scaling("channel"), FIXED], ids=lambda scaling: scaling.mode)
def test_latents(scaling: Scaling) -> None:
    """Float in, float out: as the stateless coder does it."""
    rng = np.random.default_rng(0)
    h = header((3, 7, 12), scaling=scaling)
    encoder, decoder = FrameEncoder(h, None), FrameDecoder(h)
    z = rng.normal(size=h.latent_shape)
    for i in range(4):
        z = z + 0.02 * rng.normal(size=z.shape)
        payload = encoder.encode_latent(z.astype(np.float32))
        alone = entropy.encode_latent(z.astype(np.float32), h)
        assert (payload == alone) == (i == 0)
        assert decoder.decode_latent(payload, i).tobytes() == entropy.decode_latent(alone, h).tobytes()
        for found, expected in zip(entropy.payload_range(payload, h), entropy.payload_range(alone, h), strict=True):
            assert found.tolist() == expected.tolist()


@given(
    st.integers(0, 2**31), st.integers(1, 8), st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 3),
    st.sampled_from([(4, 4), (1, 16), (16, 1), (3, 7)]), st.lists(st.floats(0, 1), min_size=1, max_size=5),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_any_sequence(
    seed: int, bits: int, shape: tuple[int, int, int], interval: int, tile: tuple[int, int], stay: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    frames = [rng.integers(0, 1 << bits, shape).astype(np.uint8)]
    for share in stay:
        new = rng.integers(0, 1 << bits, shape).astype(np.uint8)
        frames.append(np.where(rng.random(shape) < share, frames[-1], new))
    check(frames, header(shape, bits, tile), interval)


def test_errors_of_128_and_sums_beyond_255() -> None:
    """Checkers of 0 and 128 and their opposite: every error is -128, in the frame before, too."""
    y, x = np.mgrid[:9, :14]
    frames = [(128 * ((x + y + i // 2) % 2)[None]).astype(np.uint8) for i in range(6)]
    check(frames, header((1, 9, 14)))


# --- every mode does what it is for -----------------------------------------------------------------------------------


def test_each_mode() -> None:
    rng = np.random.default_rng(3)
    shape = 4, 24, 40
    wild = np.where(rng.random(shape[1:]) < 0.1, 20.0, 0.3)
    still, texture = rng.integers(0, 256, (2, *shape[1:]))
    slopes = np.add.outer(5 * np.arange(24), 3 * np.arange(40))
    frames = []
    for i in range(3):
        noise = rng.normal(size=shape) * wild
        still = still + (rng.random(shape[1:]) < 0.02)  # steps come anywhere, and stay
        channels = [
            128 + noise[0],  # nothing stays but where it is wild
            slopes + 40 * i + noise[1],
            still,
            texture + noise[2],  # the noise comes where it was
        ]
        frames.append(np.stack(channels).round().astype(np.int64) % 256)
    payloads = check([q.astype(np.uint8) for q in frames], h := header(shape, tile=(24, 40)))
    assert modes(payloads[2], h) == [4, 5, 3, 6]


def ideal_bits(q: np.ndarray, old: np.ndarray, old_errors: np.ndarray, h: Any, payload: bytes) -> float:
    """What the channels' parameters make of a frame in one tile, all of it in modes 3 and 6, from docs/format.md."""
    total = 0.0
    found = unpack_context(payload[1:], h, plan_tiles(h), inter=True).channels
    for c, (mode, f, g) in enumerate(zip(found.mode, found.f, found.g, strict=True)):
        assert mode in (3, 6)
        e = (q[c].astype(int) - old[c] + 128) % 256 - 128
        rows, columns = e.shape
        for y in range(rows):
            for x in range(columns):

                def near(dy: int, dx: int, y: int = y, x: int = x, e: np.ndarray = e) -> int:
                    return abs(int(e[y + dy, x + dx]))

                w = near(0, -1) if x else near(-1, 0) if y else 0
                ww = near(0, -2) if x > 1 else (near(-1, -x) if y else 0) if x == 1 else w
                n = near(-1, 0) if y else w
                ne = (near(-1, 1) if x + 1 < columns else n) if y else w
                t = 0
                if mode == 6:
                    plane = old_errors[c].astype(int)
                    t = 2 * plane[y, x]
                    for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                        t += plane[v, u] if 0 <= v < rows and 0 <= u < columns else plane[y, x]
                s = np.array(2 * w + ww + 2 * n + ne + min(t, 255))
                total += costs()[table_map()[f, g, int(level(s))], e[y, x] + 128] / 256
    return total


def test_bytes_are_near_the_ideal_of_the_model() -> None:
    rng = np.random.default_rng(1)
    still = rng.integers(20, 230, (2, 30, 50))
    wild = np.where(np.arange(50) < 20, 0.1, 4.0)
    first = still.astype(np.uint8)
    second = (still + (wild * rng.normal(size=still.shape)).round()).astype(np.uint8)
    third = (still + (wild * rng.normal(size=still.shape)).round()).astype(np.uint8)
    h = header(still.shape, tile=(30, 50))
    payloads = check([first, second, third], h)
    assert modes(payloads[2], h) == [6, 6]
    errors = np.abs(second.astype(int) - first)
    assert modes(payloads[1], h)[0] in (3, 6)
    ideal = ideal_bits(third, second, errors, h, payloads[2])
    lanes = 2
    assert ideal < 8 * len(payloads[2]) < 1.01 * ideal + 8 + lanes * (11 + 16 + 7) + 2 * 24


# --- rate -------------------------------------------------------------------------------------------------------------


def test_a_still_scene_takes_a_fraction() -> None:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (4, 24, 40), np.uint8)
    h = header(still.shape, tile=(24, 40))
    same = check([still, still, still], h)
    # A lane of equal symbols: its state, a few bits, its length and parameters.
    assert len(same[2]) <= 4 * 5 + 4
    frames = [still ^ (rng.random(still.shape) < 0.02).astype(np.uint8) for _ in range(4)]
    payloads = check(frames, h)
    assert sum(map(len, payloads[1:])) < 0.2 * 3 * len(payloads[0])


def test_a_new_scene_is_a_key_frame() -> None:
    rng = np.random.default_rng(0)
    noise = (128 + 15 * rng.normal(size=(3, 24, 40))).round().clip(0, 255).astype(np.uint8)
    slopes = (np.add.outer(7 * np.arange(24), 5 * np.arange(40)) + rng.integers(0, 3, (3, 24, 40))).astype(np.uint8)
    frames = [noise, noise, slopes, slopes, noise]
    assert keys(check(frames, h := header((3, 24, 40), tile=(12, 20))), h) == [0, 2, 4]
    constant = [np.full((3, 5, 5), value, np.uint8) for value in (3, 3, 9)]
    assert keys(check(constant, h := header((3, 5, 5))), h) == [0, 1, 2]


# --- key frames and state ---------------------------------------------------------------------------------------------

STREAM = video((5, 6, 11), 10)
H = header((5, 6, 11))


@pytest.mark.parametrize(("interval", "expected"), [
    (1, list(range(10))), (2, [0, 2, 4, 6, 8]), (4, [0, 4, 8]), (0, [0]), (None, [0]), (100, [0]),
])  # fmt: skip
def test_key_interval(interval: int | None, expected: list[int]) -> None:
    assert keys(check(STREAM, H, interval), H) == expected


def test_the_count_begins_anew_behind_any_key_frame() -> None:
    encoder = FrameEncoder(H, 3)
    payloads = []
    for i, q in enumerate(STREAM):
        if i == 4:
            encoder.restart()
        payloads.append(encoder.encode_symbols(q))
    assert keys(payloads, H) == [0, 3, 4, 7]


@pytest.mark.parametrize("interval", [-1, -15])
def test_intervals_that_cannot_be(interval: int) -> None:
    with pytest.raises(UsageError, match=f"every {interval} frames, expected 1 or more"):
        FrameEncoder(H, interval)


@pytest.mark.parametrize("coder", ["context", "huffman-channel", "huffman-frame"])
def test_other_coders_stand_alone(coder: Any) -> None:
    tile = (4, 6) if coder == "context" else (0, 0)
    h = dataclasses.replace(H, coder=coder, tile=tile)
    for interval in (0, None, 2):
        with pytest.raises(UsageError, match="whose frames stand alone"):
            FrameEncoder(h, interval)
    encoder, decoder = FrameEncoder(h), FrameDecoder(h)
    payloads = [encoder.encode_symbols(q) for q in STREAM]
    for i in (7, 3, 9, 3):
        assert payloads[i] == entropy.encode_symbols(STREAM[i], h)
        assert is_key(payloads[i], h)
        assert (decoder.decode_symbols(payloads[i], i) == STREAM[i]).all()
        assert (decoder.decode_latent(payloads[i], i) == entropy.decode_latent(payloads[i], h)).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_stream_entered_anywhere_is_read_from_the_next_key_frame_on(implementation: Any) -> None:
    payloads = encode(STREAM, H, 4)
    for start in range(len(STREAM)):
        decoder = FrameDecoder(H, implementation=implementation)
        next_key = -(-start // 4) * 4
        for i in range(start, len(STREAM)):
            if i < next_key:
                with pytest.raises(InputError, match=f"frame {i} refers to frame {i - 1}, which was not decoded") as e:
                    decoder.decode_latent(payloads[i], i)
                assert "next key frame" in str(e.value.hint)
            else:
                assert (decoder.decode_symbols(payloads[i], i) == STREAM[i]).all()


def test_a_lost_frame_costs_all_up_to_the_next_key_frame() -> None:
    payloads = encode(STREAM, H, 5)
    decoder = FrameDecoder(H)
    decoded = []
    for i in (0, 1, 3, 4, 5, 6, 6, 8, 9, 7, 2):
        try:
            assert (decoder.decode_symbols(payloads[i], i) == STREAM[i]).all()
        except InputError:
            continue
        decoded.append(i)
    # 6 a second time finds itself, 7 still comes behind 6; 2 was too late.
    assert decoded == [0, 1, 5, 6, 7]


def test_state_is_nobody_elses() -> None:
    encoder, decoder = FrameEncoder(H, None), FrameDecoder(H)
    for i, (q, expected) in enumerate(zip(STREAM, encode(STREAM, H, None), strict=True)):
        mine = q.copy()
        payload = encoder.encode_symbols(mine)
        mine[:] = 0
        assert payload == expected
        found = decoder.decode_symbols(payload, i)
        assert (found == q).all()
        found[:] = 7


def test_an_encoder_goes_on_after_a_bad_frame() -> None:
    h = header((5, 6, 11), 7)
    frames = video((5, 6, 11), 3, 7)
    encoder = FrameEncoder(h, None)
    found = [encoder.encode_symbols(frames[0])]
    with pytest.raises(InputError, match="symbol 200"):
        encoder.encode_symbols(np.full(h.latent_shape, 200, np.uint8))
    with pytest.raises(ArtifactError, match="latent of shape"):
        encoder.encode_symbols(frames[0][:2])
    found += [encoder.encode_symbols(q) for q in frames[1:]]
    assert found == encode(frames, h, None)


def test_outputs_that_do_not_fit() -> None:
    payloads = encode(STREAM[:2], H, None)
    decoder = FrameDecoder(H)
    for out in (np.empty((5, 6, 12), np.uint8), np.empty((5, 6, 11), np.int8)):
        with pytest.raises(ArtifactError, match="expected writable uint8"):
            decoder.decode_symbols(payloads[0], 0, out)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="expected writable contiguous float32"):
        decoder.decode_latent(payloads[0], 0, np.empty((5, 6, 12), np.float32))
    symbols, floats = np.empty(H.latent_shape, np.uint8), np.empty(H.latent_shape, np.float32)
    assert decoder.decode_symbols(payloads[0], 0, symbols) is symbols
    with pytest.raises(ArtifactError):
        decoder.decode_symbols(payloads[1], 1, symbols[:1])
    assert decoder.decode_latent(payloads[1], 1, floats) is floats
    assert (symbols == STREAM[0]).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_single_frames_without_state(implementation: Any) -> None:
    payloads = encode(STREAM[:2], H, None)
    assert entropy.encode_symbols(STREAM[0], H, implementation=implementation) == payloads[0]
    assert (entropy.decode_symbols(payloads[0], H, implementation) == STREAM[0]).all()
    for decode in (entropy.decode_symbols, entropy.decode_latent):
        with pytest.raises(InputError, match="refers to the frame before it") as caught:
            decode(payloads[1], H, implementation=implementation)
        assert "FrameDecoder" in str(caught.value.hint)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_any_number_of_threads_gives_the_same(threads: int) -> None:
    h = header((7, 33, 61), 5)
    frames = video((7, 33, 61), 3, 5)
    decoder = FrameDecoder(h, threads)
    for i, payload in enumerate(encode(frames, h, None)):
        assert (decoder.decode_symbols(payload, i) == frames[i]).all()
    with pytest.raises(UsageError, match="0 threads"):
        FrameDecoder(h, 0)
