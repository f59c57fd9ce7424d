// SPDX-License-Identifier: Apache-2.0
// A plain main for the fuzz targets: runs them on files, and on every file of a
// directory, so that ctest replays the corpora with any compiler. To search for new
// inputs, build the target and what it uses with clang -fsanitize=fuzzer,address,undefined
// and without this file.
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int inputs;

static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat info;
    if (!file || fstat(fileno(file), &info) != 0) {
        perror(path);
        return 1;
    }
    // Exactly as long as the input, so that a sanitizer sees a read beyond it.
    size_t size = (size_t)info.st_size;
    uint8_t *data = malloc(size ? size : 1);
    size_t n = data ? fread(data, 1, size, file) : 0;
    fclose(file);
    if (!data || n != size) {
        fprintf(stderr, "%s: read %zu of %zu bytes\n", path, n, size);
        free(data);
        return 1;
    }
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    inputs++;
    return 0;
}

static int run_path(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return run_file(path);
    int failed = 0;
    for (const struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.')
            failed |= run_file(name);
    }
    closedir(dir);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;
    for (int i = 1; i < argc; i++)
        failed |= run_path(argv[i]);
    printf("%d inputs\n", inputs);
    return failed || inputs == 0;
}
