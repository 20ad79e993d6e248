/* Kernels as TVM would make them, written by hand: PREFIX is the bundle's name. */
#include <stddef.h>
#include <stdint.h>

#define JOIN_(left, right) left##_##right
#define JOIN(left, right) JOIN_(left, right)
#define KERNEL(name) JOIN(PREFIX, name)

enum { COUNT = 24, UNALIGNED = 70, ALIGNMENT = 16 };

typedef struct {
    void *sync_handle;
    int32_t num_task;
} environment;
typedef int (*body)(int task, environment *env, void *data);

__attribute__((weak)) int (*__TVMBackendParallelLaunch)(body, void *, int);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);

struct arguments {
    const float *left, *right;
    float *result;
    int inner;
};

static int unaligned(const void *pointer) { return (uintptr_t)pointer % ALIGNMENT != 0; }

static int scale_part(int task, environment *env, void *data)
{
    struct arguments *all = data;
    for (int i = COUNT * task / env->num_task; i < COUNT * (task + 1) / env->num_task; ++i)
        all->result[i] = all->left[i] * all->right[i % 4];
    return 0;
}

/* result = left * right, `right` of 4 elements repeated; split among all threads. */
int32_t KERNEL(scale)(void *left, void *right, void *result)
{
    struct arguments all = {left, right, result, 0};
    if (unaligned(left) || unaligned(right) || unaligned(result))
        return UNALIGNED;
    return __TVMBackendParallelLaunch(scale_part, &all, 0);
}

static int add_one(int task, environment *env, void *data)
{
    struct arguments *all = data;
    (void)env;
    all->result[all->inner + task] = all->left[all->inner + task] + all->right[all->inner + task];
    return 0;
}

static int add_part(int task, environment *env, void *data)
{
    struct arguments inner = *(struct arguments *)data;
    inner.inner = task * 4;
    if (env->num_task != COUNT / 4)
        return 71;
    return __TVMBackendParallelLaunch(add_one, &inner, 4); /* a loop inside of a loop */
}

/* result = left + right, in six tasks. */
int32_t KERNEL(add)(void *left, void *right, void *result)
{
    struct arguments all = {left, right, result, 0};
    if (unaligned(left) || unaligned(right) || unaligned(result))
        return UNALIGNED;
    return __TVMBackendParallelLaunch(add_part, &all, COUNT / 4);
}

static int check_one(int task, environment *env, void *data)
{
    const float *values = data;
    (void)env;
    if (values[task] < 1000.0f)
        return 0;
    const char *parts[] = {"a value is too large"};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 1);
    return -1;
}

/* Fails if an element is 1000 or more. */
int32_t KERNEL(check)(void *values) { return __TVMBackendParallelLaunch(check_one, values, COUNT); }
