"""Hostile safetensors: headers that contradict themselves or the file, and headers that would cost much."""

import json
import struct

from tests.hostile.cases import KOHYA, LOAD, REFUSE, WARN, Case, bytes_file, raw_safetensors

DOWN, UP = f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight"
INFO = {
    DOWN: {"dtype": "F32", "shape": [2, 32], "data_offsets": [0, 256]},
    UP: {"dtype": "F32", "shape": [32, 2], "data_offsets": [256, 512]},
    f"{KOHYA}.alpha": {"dtype": "F32", "shape": [], "data_offsets": [512, 516]},
}
BODY = struct.pack("<129f", *([0.5] * 128), 1.0)
TEXT = json.dumps(INFO)


def changed(key=DOWN, **fields):
    """Return the header with other fields of a tensor; None removes one."""
    info = {name: value for name, value in {**INFO[key], **fields}.items() if value is not None}
    return {**INFO, key: info}


def with_tensor(key, dtype="F32", shape=(), offsets=(516, 520)):
    return {**INFO, key: {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def header(info, body=BODY):
    return raw_safetensors(info, body)


def length(count, rest=None):
    return count.to_bytes(8, "little") + (TEXT.encode() + BODY if rest is None else rest)


def text_header(text, body=BODY):
    return raw_safetensors(text.encode("utf-8", "surrogatepass"), body)


SAFETENSORS = [
    ("ok", LOAD, "a LoRA", header(INFO)),
    ("ok_padded", LOAD, "a header padded with spaces", text_header(TEXT + "   ")),
    ("ok_metadata", LOAD, "metadata", header({"__metadata__": {"format": "pt"}, **INFO})),
    ("ok_order", LOAD, "a header in another order than the data", header(dict(reversed(INFO.items())))),
    ("ok_escapes", LOAD, "letters as escapes", text_header(TEXT.replace("lora", "\\u006cora"))),
    (
        "empty_tensor",
        WARN,
        "an unknown tensor without values",
        header(with_tensor("foo", shape=[0], offsets=(516, 516))),
    ),
    ("name_surrogate", REFUSE, "half of a pair in a name", text_header(TEXT.replace(f"{KOHYA}.alpha", "\\ud800"))),
    ("nothing", REFUSE, "nothing", b""),
    ("one_byte", REFUSE, "one byte", b"\x08"),
    ("length_only", REFUSE, "the length alone", length(len(TEXT), b"")),
    ("length_0", REFUSE, "length 0", length(0)),
    ("length_2_62", REFUSE, "length 2 ** 62", length(2**62)),
    ("length_max", REFUSE, "length 2 ** 64 - 1", length(2**64 - 1)),
    ("length_1gb", REFUSE, "length 10 ** 9", length(10**9)),
    ("length_short", REFUSE, "a length one short", length(len(TEXT) - 1)),
    ("length_long", REFUSE, "a length 8 too long", length(len(TEXT) + 8)),
    ("length_big_end", REFUSE, "the length with the big end first", len(TEXT).to_bytes(8) + TEXT.encode() + BODY),
    ("json_word", REFUSE, "a word", text_header("tensors")),
    ("json_cut", REFUSE, "JSON cut short", text_header(TEXT[:-1])),
    ("json_twice", REFUSE, "two objects", text_header(TEXT + TEXT)),
    ("json_list", REFUSE, "a list of tensors", header([INFO])),
    ("json_number", REFUSE, "a number", text_header("5")),
    ("json_text", REFUSE, "a text", text_header('"tensors"')),
    ("json_comment", REFUSE, "a comment", text_header(TEXT[:-1] + "/* */}")),
    ("json_comma", REFUSE, "a comma before the end", text_header(TEXT[:-1] + ",}")),
    ("json_quotes", REFUSE, "single quotes", text_header(TEXT.replace('"', "'"))),
    ("json_utf16", REFUSE, "UTF-16", raw_safetensors(TEXT.encode("utf-16"), BODY)),
    ("json_latin1", REFUSE, "Latin-1", raw_safetensors(TEXT.replace("alpha", "alph\xe4").encode("latin-1"), BODY)),
    ("json_mark", REFUSE, "a byte-order mark", raw_safetensors(TEXT.encode("utf-8-sig"), BODY)),
    ("json_newline_first", REFUSE, "a line break before the header", text_header("\n" + TEXT)),
    ("json_nul_behind", REFUSE, "NUL behind the header", text_header(TEXT + "\0\0")),
    (
        "json_overlong",
        REFUSE,
        "overlong UTF-8",
        raw_safetensors(TEXT.replace("alpha", "alphXa").encode().replace(b"X", b"\xc0\x80"), BODY),
    ),
    ("json_deep_lists", REFUSE, "lists nested 30,000 deep", text_header('{"a":' + "[" * 30_000 + "]" * 30_000 + "}")),
    ("json_deep_dicts", REFUSE, "objects nested 20,000 deep", text_header('{"a":' * 20_000 + "1" + "}" * 20_000)),
    (
        "json_deep_metadata",
        REFUSE,
        "metadata nested 10,000 deep",
        text_header('{"__metadata__":' + '{"a":' * 10_000 + "1" + "}" * 10_001),
    ),
    ("json_infinity", REFUSE, "Infinity for a size", text_header(TEXT.replace("[2, 32]", "[Infinity, 32]"))),
    ("json_digits", REFUSE, "a size of 100,000 digits", text_header(TEXT.replace("[2, 32]", f"[{'9' * 100_000}, 32]"))),
    ("json_exponent", REFUSE, "1e999999 for a size", text_header(TEXT.replace("[2, 32]", "[1e999999, 32]"))),
    (
        "key_twice",
        REFUSE,
        "a tensor twice",
        text_header(f"{TEXT[:-1]}, {json.dumps(DOWN)}: {json.dumps(INFO[DOWN])}}}"),
    ),
    (
        "key_twice_escaped",
        REFUSE,
        "a tensor twice, once with an escape",
        text_header(f"{TEXT[:-1]}, {json.dumps(DOWN).replace('l', chr(92) + 'u006c', 1)}: {json.dumps(INFO[DOWN])}}}"),
    ),
    (
        "metadata_twice",
        REFUSE,
        "metadata twice",
        text_header('{"__metadata__": {}, "__metadata__": {"a": "b"}, ' + TEXT[1:]),
    ),
    (
        "shape_twice",
        REFUSE,
        "a shape twice",
        text_header(TEXT.replace('"shape": [2, 32]', '"shape": [2, 32], "shape": [32, 2]')),
    ),
    ("gap", REFUSE, "a gap between tensors", header(changed(UP, data_offsets=[260, 516]), BODY + bytes(4))),
    (
        "gap_first",
        REFUSE,
        "a gap before the first",
        header(
            {
                key: {**info, "data_offsets": [offset + 4 for offset in info["data_offsets"]]}
                for key, info in INFO.items()
            },
            bytes(4) + BODY,
        ),
    ),
    ("overlap", REFUSE, "tensors that overlap", header(changed(UP, data_offsets=[252, 508]))),
    ("overlap_whole", REFUSE, "two tensors over the same bytes", header(changed(UP, data_offsets=[0, 256]))),
    (
        "overlap_5000",
        REFUSE,
        "5,000 tensors over the same bytes",
        header({f"a{number}": INFO[DOWN] for number in range(5000)}),
    ),
    ("past_end", REFUSE, "a tensor past the end", header(INFO, BODY[:-4])),
    ("behind_end", REFUSE, "bytes behind the last tensor", header(INFO, BODY + b"\0")),
    ("reversed", REFUSE, "an end before its begin", header(changed(data_offsets=[256, 0]))),
    ("negative", REFUSE, "a negative begin", header(changed(data_offsets=[-4, 252]))),
    ("offset_float", REFUSE, "an offset as a float", header(changed(data_offsets=[0, 256.0]))),
    ("offset_text", REFUSE, "an offset as text", header(changed(data_offsets=[0, "256"]))),
    ("offset_true", REFUSE, "true for an offset", header(changed(data_offsets=[False, 256]))),
    ("offset_2_63", REFUSE, "an offset of 2 ** 63", header(changed(data_offsets=[0, 2**63]))),
    ("offsets_one", REFUSE, "one offset", header(changed(data_offsets=[0]))),
    ("offsets_three", REFUSE, "three offsets", header(changed(data_offsets=[0, 256, 512]))),
    ("offsets_missing", REFUSE, "no offsets", header(changed(data_offsets=None))),
    ("shape_other", REFUSE, "a shape of other bytes", header(changed(shape=[2, 33]))),
    ("shape_negative", REFUSE, "two negative sizes", header(changed(shape=[-2, -32]))),
    ("shape_overflow", REFUSE, "a product of 2 ** 64", header(changed(shape=[2**32, 2**32, 0, 1]))),
    (
        "shape_huge_empty",
        REFUSE,
        "2 ** 62 rows of nothing",
        header(with_tensor("foo", shape=[2**62, 0], offsets=(516, 516))),
    ),
    ("shape_petabyte", REFUSE, "a tensor of a petabyte", header(changed(shape=[2**25, 2**25]))),
    ("shape_dimensions", REFUSE, "1,000 dimensions", header(changed(shape=[1] * 1000 + [2, 32]))),
    ("shape_text", REFUSE, "text for a shape", header(changed(shape="2x32"))),
    ("shape_nested", REFUSE, "a nested shape", header(changed(shape=[[2, 32]]))),
    ("shape_true", REFUSE, "true for a size", header(changed(shape=[2, True, 32]))),
    ("shape_none", REFUSE, "null for a shape", text_header(TEXT.replace("[2, 32]", "null"))),
    ("dtype_unknown", REFUSE, "F24", header(changed(dtype="F24"))),
    ("dtype_lower", REFUSE, "f32", header(changed(dtype="f32"))),
    ("dtype_torch", REFUSE, "torch.float32", header(changed(dtype="torch.float32"))),
    ("dtype_number", REFUSE, "a number for a precision", header(changed(dtype=32))),
    ("dtype_missing", REFUSE, "no precision", header(changed(dtype=None))),
    ("dtype_other", REFUSE, "float64 in the bytes of float32", header(changed(dtype="F64"))),
    ("dtype_int", REFUSE, "int32 for weights", header(changed(dtype="I32"))),
    ("dtype_bool", REFUSE, "booleans for weights", header(changed(dtype="BOOL", shape=[8, 32]))),
    ("field_unknown", REFUSE, "an unknown field of a tensor", header(changed(strides=[32, 1]))),
    ("info_text", REFUSE, "text for a tensor", header({**INFO, "foo": "tensor"})),
    ("info_null", REFUSE, "null for a tensor", header({**INFO, "foo": None})),
    ("metadata_number", REFUSE, "a number in the metadata", header({"__metadata__": {"a": 5}, **INFO})),
    ("metadata_null", REFUSE, "null in the metadata", header({"__metadata__": {"a": None}, **INFO})),
    ("metadata_true", REFUSE, "true in the metadata", header({"__metadata__": {"a": True}, **INFO})),
    ("metadata_object", REFUSE, "an object in the metadata", header({"__metadata__": {"a": {}}, **INFO})),
    ("metadata_text", REFUSE, "text for the metadata", header({"__metadata__": "pt", **INFO})),
    ("no_tensors", REFUSE, "metadata alone", header({"__metadata__": {"format": "pt"}}, b"")),
    ("no_tensors_body", REFUSE, "bytes without a tensor", header({}, BODY)),
    ("body_nan", REFUSE, "NaN in the values", header(INFO, struct.pack("<f", float("nan")) + BODY[4:])),
    ("polyglot_zip", REFUSE, "a zip behind it", header(INFO) + b"PK\x05\x06" + bytes(18)),
    ("polyglot_pickle", REFUSE, "a pickle behind it", header(INFO) + b"\x80\x02cos\nsystem\n."),
    (
        "keys_100k",
        REFUSE,
        "100,000 tensors without values",
        header(
            {f"a{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)}, b""
        ),
    ),
    ("key_1mb", WARN, "a name of a megabyte", header(with_tensor("a" * 2**20, offsets=(516, 520)), BODY + bytes(4))),
]

CASES = [
    Case(f"st_{name}", "safetensors", must, why, bytes_file(f"st_{name}", data, ".safetensors"))
    for name, must, why, data in SAFETENSORS
]
