// SPDX-License-Identifier: Apache-2.0
// safetensors: well-formed files, and every way a file or an index can lie.
#include "tests/unit/testing.h"

#include "runtime/base/mem.h"
#include "runtime/io/safetensors.h"

static const char data16[] = "0123456789abcdef";

// Writes a file: header length, header, data.
static const char *write_file(const test_dir *dir, const char *name, const char *header,
                              const char *data, size_t data_len)
{
    unsigned char bytes[8192] = {0};
    size_t len = strlen(header);
    assert_true(8 + len + data_len <= sizeof bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(len >> (8 * i));
    memcpy(bytes + 8, header, len);
    if (data_len > 0)
        memcpy(bytes + 8 + len, data, data_len);
    return test_write(dir, name, bytes, 8 + len + data_len);
}

static rt_status open_dir(const test_dir *dir)
{
    rt_checkpoint *ckpt = NULL;
    rt_status status = rt_checkpoint_open(dir->path, &ckpt);
    assert_true(status == RT_OK || ckpt == NULL);
    rt_checkpoint_close(ckpt);
    return status;
}

#define META "\"__metadata__\":{\"format\":\"pt\"}"
#define GOOD                                                                                       \
    "{" META ",\"m\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[2,14]},"                \
    "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[14,14]},"                      \
    "\"scalar\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[0,2]},"                          \
    "\"bytes\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[14,16]}}   "

static void test_read(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_checkpoint *ckpt;
    rt_tensor t;
    const char *type;
    const char *names[] = {"bytes", "empty", "m", "scalar"};
    const char *path = write_file(&dir, "model.safetensors", GOOD, data16, 16);
    assert_ok(rt_checkpoint_open(dir.path, &ckpt));
    assert_int_equal(rt_checkpoint_count(ckpt), 4);
    assert_int_equal(rt_checkpoint_bytes(ckpt), 16);
    for (size_t i = 0; i < 4; i++) {
        rt_checkpoint_at(ckpt, i, &t, &type);
        assert_string_equal(t.name, names[i]);
        assert_string_equal(t.file, path);
    }
    assert_string_equal(type, "F16");
    assert_int_equal(t.dims, 0);
    assert_int_equal(t.bytes, 2);
    assert_ok(rt_checkpoint_find(ckpt, "m", 2, 3, &t));
    assert_true(t.dtype == KERN_BF16 && t.dims == 2 && t.shape[0] == 2 && t.shape[1] == 3);
    assert_int_equal(t.bytes, 12);
    assert_memory_equal(t.data, data16 + 2, 12);
    assert_true(rt_checkpoint_has(ckpt, "scalar"));
    assert_false(rt_checkpoint_has(ckpt, "scala"));
    rt_checkpoint_close(ckpt);
    test_dir_remove(&dir);
}

static void test_find_refuses(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_checkpoint *ckpt;
    rt_tensor t = {0};
    const char *path = write_file(&dir, "model.safetensors", GOOD, data16, 16);
    assert_ok(rt_checkpoint_open(dir.path, &ckpt));
    assert_fails(rt_checkpoint_find(ckpt, "none", 1, 1, &t), RT_ERR_FORMAT, dir.path,
                 "tensor 'none' is missing");
    assert_fails(rt_checkpoint_find(ckpt, "m", 3, 2, &t), RT_ERR_FORMAT, path,
                 "tensor 'm' has shape [2, 3], expected [3, 2]");
    assert_fails(rt_checkpoint_find(ckpt, "m", 2, 0, &t), RT_ERR_FORMAT, path, "expected [2]");
    assert_fails(rt_checkpoint_find(ckpt, "scalar", 1, 0, &t), RT_ERR_FORMAT, path,
                 "has shape [], expected [1]");
    assert_fails(rt_checkpoint_find(ckpt, "bytes", 2, 0, &t), RT_ERR_UNSUPPORTED, path,
                 "'bytes' has type U8");
    assert_fails(rt_checkpoint_find(ckpt, "m", 0, 3, &t), RT_ERR_INVALID, "rows > 0", "");
    assert_null(t.data);
    rt_checkpoint_close(ckpt);
    test_dir_remove(&dir);
}

#define T(name, dtype, shape, offsets)                                                             \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const struct {
    const char *header;
    rt_status code;
    const char *cause;
} hostile[] = {
    {"{", RT_ERR_FORMAT, "line 1 column"},
    {"[]", RT_ERR_FORMAT, "the header is not an object"},
    {"{} {}", RT_ERR_FORMAT, "line 1 column"},
    {"{}", RT_ERR_FORMAT, "16 bytes after the last tensor"},
    {"{" META "}", RT_ERR_FORMAT, "16 bytes after the last tensor"},
    {"{\"__metadata__\":1}", RT_ERR_FORMAT, "'__metadata__' is not an object"},
    {"{\"__metadata__\":{\"a\":1}}", RT_ERR_FORMAT, "'a' is not a string"},
    {"{\"a\":1}", RT_ERR_FORMAT, "tensor 'a' is not an object"},
    {"{\"a\":{\"shape\":[4],\"data_offsets\":[0,16]}}", RT_ERR_FORMAT, "'dtype' is not a string"},
    {"{" T("a", "F32", "4", "[0,16]") "}", RT_ERR_FORMAT, "'a': 'shape' is not an array"},
    {"{" T("a", "F32", "[-4]", "[0,16]") "}", RT_ERR_FORMAT, "'shape' holds"},
    {"{" T("a", "F32", "[4.0]", "[0,16]") "}", RT_ERR_FORMAT, "'shape' holds"},
    {"{" T("a", "F32", "[1,1,1,1,3]", "[0,16]") "}", RT_ERR_FORMAT, "type F32 make 96 bits"},
    {"{" T("a", "F33", "[4]", "[0,15]") "}", RT_ERR_FORMAT, "1 bytes after the last tensor"},
    {"{" T("a", "F33", "[4294967296,4294967296]", "[0,16]") "}", RT_ERR_FORMAT, "shape overflows"},
    {"{" T("a", "F32", "[4]", "[0]") "}", RT_ERR_FORMAT, "'data_offsets' is not [begin, end]"},
    {"{" T("a", "F32", "[4]", "[0,8,16]") "}", RT_ERR_FORMAT, "'data_offsets'"},
    {"{" T("a", "F32", "[4]", "[16,0]") "}", RT_ERR_FORMAT, "'data_offsets'"},
    {"{" T("a", "F32", "[4]", "[-16,0]") "}", RT_ERR_FORMAT, "'data_offsets'"},
    {"{" T("a", "F32", "[4]", "[0,1e3]") "}", RT_ERR_FORMAT, "'data_offsets'"},
    {"{" T("a", "F32", "[4]", "{}") "}", RT_ERR_FORMAT, "'data_offsets'"},
    {"{" T("a", "F32", "[4]", "[0,99999999999999999999]") "}", RT_ERR_FORMAT, "'data_offsets'"},
    {"{" T("a", "F32", "[3]", "[0,16]") "}", RT_ERR_FORMAT, "type F32 make 96 bits"},
    {"{" T("a", "F4", "[3]", "[0,1]") "}", RT_ERR_FORMAT, "type F4 make 12 bits"},
    {"{" T("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", RT_ERR_FORMAT, "shape overflows"},
    {"{" T("a", "F32", "[0,9223372036854775807,9223372036854775807]", "[0,4]") "}", RT_ERR_FORMAT,
     "make 0 bits"},
    {"{" T("a", "F32", "[8]", "[0,32]") "}", RT_ERR_FORMAT, "ends at 32, the file's data at 16"},
    {"{" T("a", "F32", "[3]", "[0,12]") "}", RT_ERR_FORMAT, "4 bytes after the last tensor"},
    {"{" T("a", "F32", "[3]", "[4,16]") "}", RT_ERR_FORMAT, "'a' begins at 4"},
    {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[1]", "[12,16]") "}", RT_ERR_FORMAT,
     "'b' begins at 12, the one before ends at 8"},
    {"{" T("a", "F32", "[3]", "[0,12]") "," T("b", "F32", "[2]", "[8,16]") "}", RT_ERR_FORMAT,
     "'b' begins at 8, the one before ends at 12"},
    {"{" T("a", "F32", "[2]", "[0,8]") "," T("a", "F32", "[2]", "[8,16]") "}", RT_ERR_FORMAT,
     "duplicate"},
};

// What nobody asks for may be of any kind; what follows it stands at any address.
static void test_unused(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_checkpoint *ckpt;
    rt_tensor t;
    const char *type;
    const char *path = write_file(
        &dir, "model.safetensors",
        "{" T("a", "U8", "[1,1,1,1,3]", "[0,3]") "," T(
            "b", "A type of tomorrow", "[7]",
            "[3,5]") "," T("c", "BF16", "[3]",
                           "[5,11]") "," T("d", "F32", "[1,1,1,1,1]",
                                           "[11,15]") "," T("e", "F4", "[0,9223372036854775807,3]",
                                                            "[15,15]") "," T("f", "F8_E4M3", "[]",
                                                                             "[15,16]") "}",
        data16, 16);
    assert_ok(rt_checkpoint_open(dir.path, &ckpt));
    assert_int_equal(rt_checkpoint_count(ckpt), 6);
    assert_int_equal(rt_checkpoint_bytes(ckpt), 16);
    static const size_t elements[] = {3, 7, 3, 1, 0, 1};
    for (size_t i = 0; i < 6; i++) {
        rt_checkpoint_at(ckpt, i, &t, &type);
        assert_int_equal(t.elements, elements[i]);
    }
    rt_checkpoint_at(ckpt, 1, &t, &type);
    assert_string_equal(type, "A type of tomor");
    assert_ok(rt_checkpoint_find(ckpt, "c", 3, 0, &t));
    assert_memory_equal(t.data, data16 + 5, 6);
    assert_fails(rt_checkpoint_find(ckpt, "a", 1, 1, &t), RT_ERR_FORMAT, path,
                 "'a' has shape [1, 1, 1, 1, ...], expected [1, 1]");
    assert_fails(rt_checkpoint_find(ckpt, "b", 7, 0, &t), RT_ERR_UNSUPPORTED, path,
                 "'b' has type A type of tomor; F32, BF16 and F16 are supported");
    rt_checkpoint_close(ckpt);
    test_dir_remove(&dir);
}

static void test_hostile_headers(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        const char *path = write_file(&dir, "model.safetensors", hostile[i].header, data16, 16);
        assert_fails(open_dir(&dir), hostile[i].code, path, hostile[i].cause);
    }
    test_dir_remove(&dir);
}

static void test_hostile_lengths(void **state)
{
    (void)state;
    const struct {
        const char *bytes;
        size_t len;
        const char *cause;
    } cases[] = {
        {"", 0, "0 bytes are too few"},
        {"\2\0\0\0\0\0\0", 7, "7 bytes are too few"},
        {"\3\0\0\0\0\0\0\0{}", 10, "header of 3 bytes in a file of 10"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "over the format's limit"},
        {"\1\xe1\xf5\5\0\0\0\0{}", 10, "header of 100000001 bytes is over"},
        {"\0\0\0\0\0\0\0\x10{}", 10, "header of 1152921504606846976 bytes is over"}, // 2^60
        {"\0\0\0\0\0\0\0\0", 8, "line 1"},
        {"PK\3\4\0\0\0\0\0\0\0\0", 12, "(truncated?)"},
    };
    test_dir dir = test_dir_new();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = test_write(&dir, "model.safetensors", cases[i].bytes, cases[i].len);
        assert_fails(open_dir(&dir), RT_ERR_FORMAT, path, cases[i].cause);
    }
    write_file(&dir, "model.safetensors", "{}", NULL, 0);
    assert_fails(open_dir(&dir), RT_ERR_FORMAT, dir.path, "holds no tensors");
    test_dir_remove(&dir);
}

// Every prefix of a good file is refused, and none is read past its end.
static void test_truncated(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    static char bytes[8192];
    const char *path = write_file(&dir, "model.safetensors", GOOD, data16, 16);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t len = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    assert_ok(open_dir(&dir));
    for (size_t n = 0; n < len; n++) {
        test_write(&dir, "model.safetensors", bytes, n);
        assert_fails(open_dir(&dir), RT_ERR_FORMAT, path, "");
    }
    test_dir_remove(&dir);
}

// ---- folders and shards ----------------------------------------------------

#define INDEX(map) "{\"metadata\":{\"total_size\":32},\"weight_map\":" map "}"
#define AB "{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}"

static void write_shards(const test_dir *dir)
{
    write_file(dir, "x.safetensors", "{" T("a", "F32", "[4]", "[0,16]") "}", data16, 16);
    write_file(dir, "y.safetensors", "{" T("b", "F32", "[4]", "[0,16]") "}", data16, 16);
}

static void test_shards(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_checkpoint *ckpt;
    rt_tensor t;
    write_shards(&dir);
    test_write_text(&dir, "model.safetensors.index.json", INDEX(AB));
    assert_ok(rt_checkpoint_open(dir.path, &ckpt));
    assert_int_equal(rt_checkpoint_count(ckpt), 2);
    assert_ok(rt_checkpoint_find(ckpt, "b", 4, 0, &t));
    assert_string_equal(t.file, test_path(&dir, "y.safetensors"));
    rt_checkpoint_close(ckpt);
    // A tensor that the index leaves out is there all the same.
    write_file(&dir, "y.safetensors",
               "{" T("b", "F32", "[2]", "[0,8]") "," T("c", "F32", "[2]", "[8,16]") "}", data16,
               16);
    assert_ok(rt_checkpoint_open(dir.path, &ckpt));
    assert_true(rt_checkpoint_has(ckpt, "c"));
    rt_checkpoint_close(ckpt);
    // Of one that two shards hold, the index says which counts.
    const char *both = "{" T("b", "F32", "[2]", "[0,8]") "," T("a", "F32", "[2]", "[8,16]") "}";
    write_file(&dir, "y.safetensors", both, data16, 16);
    assert_ok(rt_checkpoint_open(dir.path, &ckpt));
    assert_int_equal(rt_checkpoint_count(ckpt), 2);
    assert_ok(rt_checkpoint_find(ckpt, "a", 4, 0, &t));
    assert_string_equal(t.file, test_path(&dir, "x.safetensors"));
    rt_checkpoint_close(ckpt);
    // The single file comes first.
    write_file(&dir, "model.safetensors", "{" T("only", "F32", "[4]", "[0,16]") "}", data16, 16);
    assert_ok(rt_checkpoint_open(dir.path, &ckpt));
    assert_int_equal(rt_checkpoint_count(ckpt), 1);
    rt_checkpoint_close(ckpt);
    test_dir_remove(&dir);
}

static const struct {
    const char *index, *cause;
    rt_status code;
} bad_index[] = {
    {"[]", "'weight_map' is missing", RT_ERR_FORMAT},
    {"{}", "'weight_map' is missing", RT_ERR_FORMAT},
    {INDEX("{}"), "'weight_map' is missing or empty", RT_ERR_FORMAT},
    {INDEX("[\"a\"]"), "'weight_map' is missing or empty", RT_ERR_FORMAT},
    {INDEX("{\"a\":1}"), "shard of tensor 'a'", RT_ERR_FORMAT},
    {INDEX("{\"a\":\"\"}"), "shard of tensor 'a'", RT_ERR_FORMAT},
    {INDEX("{\"a\":\"..\"}"), "shard of tensor 'a'", RT_ERR_FORMAT},
    {INDEX("{\"a\":\".\"}"), "shard of tensor 'a'", RT_ERR_FORMAT},
    {INDEX("{\"a\":\"../x.safetensors\"}"), "not a file name inside the folder", RT_ERR_FORMAT},
    {INDEX("{\"a\":\"/etc/passwd\"}"), "not a file name inside the folder", RT_ERR_FORMAT},
    {INDEX("{\"a\":\"x.safetensors\\u0000\"}"), "not a file name", RT_ERR_FORMAT},
    {INDEX("{\"a\":\"x.safetensors\",\"q\":\"x.safetensors\"}"), "tensor 'q' is not in the shard",
     RT_ERR_FORMAT},
    {INDEX("{\"b\":\"x.safetensors\",\"a\":\"y.safetensors\"}"), "is not in the shard it names",
     RT_ERR_FORMAT},
    {INDEX("{\"a\":\"x.safetensors\",\"a\":\"x.safetensors\"}"), "duplicate", RT_ERR_FORMAT},
    {INDEX("{\"a\":\"x.safetensors\",\"b\":\"z.safetensors\"}"), "z.safetensors: named by",
     RT_ERR_IO},
};

static void test_bad_index(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    write_shards(&dir);
    for (size_t i = 0; i < sizeof bad_index / sizeof *bad_index; i++) {
        const char *path =
            test_write_text(&dir, "model.safetensors.index.json", bad_index[i].index);
        assert_fails(open_dir(&dir), bad_index[i].code, path, bad_index[i].cause);
    }
    test_dir_remove(&dir);
}

static void test_bad_shards(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    assert_fails(open_dir(&dir), RT_ERR_IO, dir.path, "holds no model.safetensors");
    // Two shards hold 'c', and the index does not say which counts.
    const char *both = "{" T("b", "F32", "[2]", "[0,8]") "," T("c", "F32", "[2]", "[8,16]") "}";
    write_file(&dir, "x.safetensors", "{" T("c", "F32", "[4]", "[0,16]") "}", data16, 16);
    write_file(&dir, "y.safetensors", both, data16, 16);
    test_write_text(&dir, "model.safetensors.index.json", INDEX(AB));
    assert_fails(open_dir(&dir), RT_ERR_FORMAT, "x.safetensors", "tensor 'c'");
    write_shards(&dir);
    const char *y = test_write_text(&dir, "y.safetensors", "not a checkpoint");
    assert_fails(open_dir(&dir), RT_ERR_FORMAT, y, "not safetensors?");
    test_dir_remove(&dir);
}

// Every allocation fails in turn: no leak, no crash, always a message.
static void test_out_of_memory(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_status status = RT_ERR_NOMEM;
    write_shards(&dir);
    test_write_text(&dir, "model.safetensors.index.json", INDEX(AB));
    for (long n = 1; status != RT_OK; n++) {
        rt_mem_fail_at(n);
        status = open_dir(&dir);
        if (status != RT_OK)
            assert_fails(status, RT_ERR_NOMEM, "out of memory", "");
    }
    rt_mem_fail_at(0);
    test_dir_remove(&dir);
}

// ---- an independent writer -------------------------------------------------

// The goldens were written by the safetensors library itself.
static void test_goldens(void **state)
{
    (void)state;
    const char *source = getenv("LOSA_SOURCE");
    char dir[PATH_MAX];
    if (!source)
        skip();
    const char *const names[] = {"bf16", "f16", "sharded", "gqa_b4_tied"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        rt_checkpoint *ckpt;
        rt_tensor t;
        snprintf(dir, sizeof dir, "%s/tests/golden/logits/%s", source, names[i]);
        assert_ok(rt_checkpoint_open(dir, &ckpt));
        assert_ok(rt_checkpoint_find(ckpt, "model.norm.weight", 32, 0, &t));
        assert_true(rt_checkpoint_count(ckpt) >= 24);
        rt_checkpoint_close(ckpt);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_find_refuses),
        cmocka_unit_test(test_hostile_headers),
        cmocka_unit_test(test_unused),
        cmocka_unit_test(test_hostile_lengths),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_bad_index),
        cmocka_unit_test(test_bad_shards),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_goldens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
