/* Counts what a run allocates. Linked with --wrap for each function below, so that the library's calls come here. */
#include "toy.h"

#include <stdio.h>
#include <stdlib.h>

static int allocations;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
int __real_posix_memalign(void **memory, size_t alignment, size_t bytes);
void *__wrap_malloc(size_t bytes) { return ++allocations, __real_malloc(bytes); }
void *__wrap_calloc(size_t count, size_t bytes) { return ++allocations, __real_calloc(count, bytes); }
void *__wrap_realloc(void *memory, size_t bytes) { return ++allocations, __real_realloc(memory, bytes); }
int __wrap_posix_memalign(void **memory, size_t alignment, size_t bytes)
{
    return ++allocations, __real_posix_memalign(memory, alignment, bytes);
}

int main(void)
{
    static _Alignas(64) unsigned char memory[7][256];
    const void *inputs[] = {memory[0] + 1, memory[1], memory[2]}; /* the first has to be copied */
    void *outputs[] = {memory[3] + 1, memory[4], memory[5], memory[6]};
    toy_context *context = toy_create();
    int in_create = allocations;
    if (!context || toy_set_threads(context, 3) != TOY_OK)
        return 1;
    allocations = 0;
    for (int run = 0; run < 100; ++run)
        if (toy_run(context, inputs, outputs) != TOY_OK)
            return 1;
    printf("%d in create, %d in 100 runs\n", in_create, allocations);
    toy_destroy(context);
    return 0;
}
