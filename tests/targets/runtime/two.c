/* Two libraries in one program, each with threads, in turn and at once. */
#include "other.h"
#include "toy.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { COUNT = 24, RUNS = 200 };

#define DEFINE_USE(model, factor)                                                                     \
    static int use_##model(int32_t threads)                                                           \
    {                                                                                                 \
        float x[COUNT], y[COUNT], sum[COUNT], scaled[COUNT];                                          \
        int64_t n = 3, n_out = 0;                                                                     \
        int8_t constant[5];                                                                           \
        const void *inputs[] = {x, y, &n};                                                            \
        void *outputs[] = {sum, scaled, &n_out, constant};                                            \
        model##_context *context = model##_create();                                                  \
        if (!context || (int)model##_set_threads(context, threads) != 0)                              \
            return 1;                                                                                 \
        for (int i = 0; i < COUNT; ++i)                                                               \
            x[i] = (float)i, y[i] = 1;                                                                \
        for (int run = 0; run < RUNS; ++run) {                                                        \
            memset(sum, 0, sizeof sum);                                                               \
            if ((int)model##_run(context, inputs, outputs) != 0)                                      \
                return 1;                                                                             \
            for (int i = 0; i < COUNT; ++i)                                                           \
                if (sum[i] != (float)i * (float)(i % 4 + factor) + 1 || n_out != 3)                   \
                    return 1;                                                                         \
        }                                                                                             \
        model##_destroy(context);                                                                     \
        return 0;                                                                                     \
    }                                                                                                 \
    static void *use_##model##_on_a_thread(void *failed)                                              \
    {                                                                                                 \
        *(int *)failed = use_##model(2);                                                              \
        return NULL;                                                                                  \
    }

DEFINE_USE(toy, 1)
DEFINE_USE(other, 5)

int main(void)
{
    int failed[2] = {1, 1};
    pthread_t threads[2];
    if (use_toy(1) || use_other(1) || use_toy(3) || use_other(3))
        return 1;
    if (pthread_create(&threads[0], NULL, use_toy_on_a_thread, &failed[0]) != 0 ||
        pthread_create(&threads[1], NULL, use_other_on_a_thread, &failed[1]) != 0)
        return 2;
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    if (failed[0] || failed[1])
        return 3;
    puts("both right");
    return 0;
}
