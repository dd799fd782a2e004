"""Texts of a static program that are the same for every model, but for a few names."""

from __future__ import annotations

from string import Template
from typing import Final

RUNTIME_H: Final = """\
/* What compiled kernels expect of those who call them: DLPack's tensors, TVM's packed arguments. */
#ifndef MODEL_RUNTIME_H
#define MODEL_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int32_t device_type;
    int32_t device_id;
} DLDevice;

typedef struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} DLDataType;

typedef struct {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape;
    int64_t *strides; /* NULL: row by row without gaps */
    uint64_t byte_offset;
} DLTensor;

typedef struct {
    int32_t type_index;
    uint32_t padding;
    union {
        int64_t integer;
        void *pointer;
    } value;
} TVMFFIAny;

typedef int model_kernel(void *self, TVMFFIAny *arguments, int32_t count, TVMFFIAny *result);

/* One call, with the scratch memory that the kernel may ask for. */
typedef struct {
    model_kernel *kernel;
    const char *name;
    TVMFFIAny *arguments;
    int32_t count;
    unsigned char *workspace;
    size_t workspace_bytes;
} model_call;

/* Call all kernels in order; -1 where one of them fails. */
int model_call_kernels(const model_call *calls, size_t count);

/* Begin a message for model_error (NULL: there is none); returns -1. */
int model_fail(const char *message, const char *detail);

#endif
"""

RUNTIME_C: Final = """\
/* What compiled kernels call: scratch memory out of the arena, one thread, the text of an error. No heap. */
#include "runtime.h"
#include "model.h"

static char error[512];
static const char *running;
static unsigned char *workspace;
static size_t workspace_left;

static void append(const char *text)
{
    size_t length = 0;
    while (error[length] != '\\0')
        length++;
    while (text != NULL && *text != '\\0' && length + 1 < sizeof error)
        error[length++] = *text++;
    error[length] = '\\0';
}

int model_fail(const char *message, const char *detail)
{
    error[0] = '\\0';
    append(message);
    append(detail);
    return -1;
}

static void kernel_failed(const char *what)
{
    (void)model_fail("kernel ", running);
    append(": ");
    append(what);
}

const char *model_error(void)
{
    return error;
}

int model_call_kernels(const model_call *calls, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        TVMFFIAny result = {0, 0, {0}};
        workspace = calls[i].workspace;
        workspace_left = calls[i].workspace_bytes;
        running = calls[i].name;
        if (calls[i].kernel(NULL, calls[i].arguments, calls[i].count, &result) != 0) {
            if (error[0] == '\\0')
                kernel_failed("failed");
            return -1;
        }
    }
    return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count)
{
    kernel_failed(kind);
    append(": ");
    for (int32_t i = 0; i < count; i++)
        append(parts[i]);
}

/* Kernels free in the reverse order, so their scratch memory is a stack. */
void *TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t bytes, int code, int bits)
{
    unsigned char *start = workspace;
    uint64_t rounded = (bytes + MODEL_ALIGNMENT - 1) / MODEL_ALIGNMENT * MODEL_ALIGNMENT;
    (void)device_type, (void)device_id, (void)code, (void)bits;
    if (rounded < bytes || rounded > workspace_left) {
        kernel_failed("the scratch memory is too small");
        return NULL;
    }
    workspace += rounded;
    workspace_left -= (size_t)rounded;
    return start;
}

int TVMBackendFreeWorkspace(int device_type, int device_id, void *start)
{
    (void)device_type, (void)device_id;
    workspace_left += (size_t)(workspace - (unsigned char *)start);
    workspace = start;
    return 0;
}

typedef struct {
    void *handle;
    int32_t tasks;
} group;

typedef int task(int number, group *environment, void *data);

/* One task does all the work of a parallel loop. */
int TVMBackendParallelLaunch(task *run, void *data, int tasks)
{
    group environment = {NULL, 1};
    (void)tasks;
    return run(0, &environment, data);
}

int TVMBackendParallelBarrier(int number, group *environment)
{
    (void)number, (void)environment;
    return 0;
}

/* Kernels call through these pointers, which are weak in their object and NULL there. */
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = TVMBackendAllocWorkspace;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = TVMBackendFreeWorkspace;
int (*__TVMBackendParallelLaunch)(task *, void *, int) = TVMBackendParallelLaunch;
int (*__TVMBackendParallelBarrier)(int, group *) = TVMBackendParallelBarrier;
"""

PROVIDED: Final = frozenset(
    {
        "TVMFFIErrorSetRaisedFromCStrParts",
        *(
            prefix + name
            for name in (
                "TVMBackendAllocWorkspace",
                "TVMBackendFreeWorkspace",
                "TVMBackendParallelLaunch",
                "TVMBackendParallelBarrier",
            )
            for prefix in ("", "__")
        ),
    }
)
"""Functions of the TVM runtime that RUNTIME_C has."""

MAKEFILE: Final = Template("""\
# A static program for $target.
#   make                    the example
#   make LDFLAGS=-static    without any library on the device
#   make LDFLAGS=-static CC="python -m ziglang cc -target $zig"
# A program of your own links model.o, runtime.o, weights.o and kernels.o.
ifeq ($$(origin CC),default)
CC := $compiler
endif
CFLAGS ?= -O2

example: main.o model.o runtime.o weights.o $objects
	$$(CC) $$(CFLAGS) $$(LDFLAGS) -o $$@ $$^ -lm

main.o model.o runtime.o: %.o: %.c model.h runtime.h
	$$(CC) -std=c11 $$(CFLAGS) -c -o $$@ $$<

weights.o: weights.S weights.bin
	$$(CC) $$(CFLAGS) -c -o $$@ weights.S

clean:
	rm -f example main.o model.o runtime.o weights.o

.PHONY: clean
""")

CMAKE: Final = Template("""\
# A static program for $target: link the library "model".
cmake_minimum_required(VERSION 3.16)
project(model C ASM)

add_library(model STATIC model.c runtime.c weights.S $objects)
target_include_directories(model PUBLIC $${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(model PUBLIC m)
set_target_properties(model PROPERTIES C_STANDARD 11)
set_source_files_properties(weights.S PROPERTIES OBJECT_DEPENDS $${CMAKE_CURRENT_SOURCE_DIR}/weights.bin)

add_executable(example main.c)
target_link_libraries(example PRIVATE model)
set_target_properties(example PROPERTIES C_STANDARD 11)
""")

WEIGHTS_S: Final = Template("""\
/* The constant data. Its sha256, so that compilers that cache what they saw see another file when it changes:
   $digest */
    .section .rodata
    .balign $alignment
    .global model_weights
model_weights:
    $data
    .section .note.GNU-stack, "", %progbits
""")

MAIN_C: Final = Template("""\
/* An example: example INPUT... OUTPUT... reads raw input files and writes raw output files.
   More groups of files are more runs, one after the other, with one state. */
#include <stdio.h>
#include "model.h"

#define AT_LEAST_ONE(size) ((size) > 0 ? (size) : 1)

$buffers
static int load(const char *path, void *data, size_t size)
{
    FILE *file = fopen(path, "rb");
    size_t count = file == NULL ? 0 : fread(data, 1, size, file);
    int longer = file != NULL && fgetc(file) != EOF;
    if (file != NULL)
        fclose(file);
    if (file != NULL && count == size && !longer)
        return 0;
    fprintf(stderr, "%s: expected a file of %zu bytes\\n", path, size);
    return -1;
}

static int store(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    size_t count = file == NULL ? 0 : fwrite(data, 1, size, file);
    if (file != NULL && fclose(file) == 0 && count == size)
        return 0;
    fprintf(stderr, "%s: cannot be written\\n", path);
    return -1;
}

int main(int count, char **files)
{
    const int group = MODEL_INPUTS + MODEL_OUTPUTS;
    if (count < 1 + group || (count - 1) % group != 0) {
        fprintf(stderr, "give %d input and %d output files\\n", MODEL_INPUTS, MODEL_OUTPUTS);
        return 2;
    }
    if (model_init() != 0) {
        fprintf(stderr, "%s\\n", model_error());
        return 1;
    }
    for (char **file = files + 1; file < files + count; file += group) {
        for (int i = 0; i < MODEL_INPUTS; i++)
            if (load(file[i], inputs[i], input_bytes[i]) != 0)
                return 1;
        if (model_run((const void *const *)inputs, outputs) != 0) {
            fprintf(stderr, "%s\\n", model_error());
            return 1;
        }
        for (int i = 0; i < MODEL_OUTPUTS; i++)
            if (store(file[MODEL_INPUTS + i], outputs[i], output_bytes[i]) != 0)
                return 1;
    }
    return 0;
}
""")
