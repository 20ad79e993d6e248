/* How a kernel's parallel loop finds the pool of the context that runs it. Included by the generated driver.
 *
 * Kernels call through one variable, __TVMBackendParallelLaunch, and pass no context. Several models may be linked
 * into one program, each with a driver of its own, and then share that variable and the thread-local one below: both
 * are weak, and the layout of struct graphopt_frame_v1 never changes (a change takes a new name).
 */
#include <stddef.h>
#include <stdint.h>

#define WEAK __attribute__((weak)) /* and hidden, as all that is compiled with -fvisibility=hidden */

typedef struct {
    void *sync_handle; /* for barriers inside of loops, which kernels here do not have */
    int32_t num_task;
} parallel_environment;

/* One part of a parallel loop: the iterations of task `task` of environment->num_task. 0 on success. */
typedef int (*parallel_body)(int task, parallel_environment *environment, void *data);

struct graphopt_frame_v1 {
    /* Run `body` for each of `tasks` tasks, or one a thread if it is 0. */
    int (*launch)(struct graphopt_frame_v1 *frame, parallel_body body, void *data, int tasks);
    /* Keep a message about an error in a kernel, if it is the first. */
    void (*fail)(struct graphopt_frame_v1 *frame, const char *message);
};

/* Of the run that this thread is in, or NULL. */
WEAK _Thread_local struct graphopt_frame_v1 *graphopt_current_v1;

static int run_in_order(parallel_body body, void *data, int tasks)
{
    parallel_environment environment = {NULL, tasks > 0 ? tasks : 1};
    int status = 0;
    for (int task = 0; task < environment.num_task && status == 0; ++task)
        status = body(task, &environment, data);
    return status;
}

static int parallel_launch(parallel_body body, void *data, int tasks)
{
    struct graphopt_frame_v1 *frame = graphopt_current_v1;
    return frame ? frame->launch(frame, body, data, tasks) : run_in_order(body, data, tasks);
}

WEAK int (*__TVMBackendParallelLaunch)(parallel_body, void *, int) = parallel_launch;

/* A kernel object defines the variable as well, as zero, and the linker may keep that one. Any model's launch function
 * serves all, so the first stays: kernels of another context may be reading the variable.
 */
static void install_parallel_launch(void)
{
    int (*none)(parallel_body, void *, int) = NULL;
    if (!__atomic_load_n(&__TVMBackendParallelLaunch, __ATOMIC_ACQUIRE))
        __atomic_compare_exchange_n(&__TVMBackendParallelLaunch, &none, parallel_launch, 0, __ATOMIC_RELEASE,
                                    __ATOMIC_RELAXED);
}

/* What kernels call before they return an error. */
WEAK void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count)
{
    (void)kind;
    if (graphopt_current_v1 && count > 0)
        graphopt_current_v1->fail(graphopt_current_v1, parts[0]);
}

/* Kernels for 32-bit ARM call these where they divide; the compiler's runtime has them under ARM's own names alone. They
 * have sections of their own, so that the linker drops them from libraries that do not divide.
 */
#if defined(__arm__)
WEAK __attribute__((section(".text.__divsi3"))) int32_t __divsi3(int32_t dividend, int32_t divisor);
WEAK __attribute__((section(".text.__udivsi3"))) uint32_t __udivsi3(uint32_t dividend, uint32_t divisor);
int32_t __divsi3(int32_t dividend, int32_t divisor) { return dividend / divisor; }
uint32_t __udivsi3(uint32_t dividend, uint32_t divisor) { return dividend / divisor; }
#endif
