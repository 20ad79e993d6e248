/* A pool of threads that splits parallel loops. Included by the generated driver.
 *
 * Task t of a loop runs on thread t modulo the number of threads, so the split does not depend on timing. Between two
 * loops a thread spins for some microseconds, since the next layer follows soon, and then sleeps.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, STACK_BYTES = 1 << 20 };

#if defined(__x86_64__) || defined(__i386__)
enum { SPINS = 1000 }; /* of about 40 ns each */
#define SPIN_PAUSE() __asm__ volatile("pause")
#elif defined(__aarch64__) || (defined(__ARM_ARCH) && __ARM_ARCH >= 7)
enum { SPINS = 10000 }; /* of a few cycles each */
#define SPIN_PAUSE() __asm__ volatile("yield")
#else
enum { SPINS = 10000 };
#define SPIN_PAUSE() ((void)0)
#endif

struct pool;

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index; /* 1 and up: the caller is thread 0 */
};

struct pool {
    struct worker *workers; /* threads - 1 of them */
    int threads;
    int spins;   /* 0 if there are more threads than processors */
    pid_t owner; /* the process that has the threads: a child after fork() has none of them */
    bool inside; /* a loop is running: one inside of it runs in order */

    /* The loop under way: written by the caller before it advances `generation`. */
    struct graphopt_frame_v1 *frame;
    parallel_body body;
    void *data;
    int tasks;

    atomic_uint generation; /* counts loops; workers wait for it to change */
    atomic_int pending;     /* workers that have not finished the loop */
    atomic_int status;      /* of the last task that failed, or 0 */
    atomic_bool stop;

    /* For those that sleep. Who changes an atomic looks at these after, who sleeps sets them before it looks at the
     * atomic again: one of both sees the other. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;  /* `generation`, for workers */
    pthread_cond_t finished; /* `pending` is 0, for the caller */
    atomic_int sleeping;
    atomic_bool waiting;
};

static int processors(void)
{
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
        return CPU_COUNT(&allowed);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 && online < MAX_THREADS ? (int)online : 1;
}

static void pool_share(struct pool *pool, int thread)
{
    parallel_environment environment = {NULL, pool->tasks};
    for (int task = thread; task < pool->tasks; task += pool->threads) {
        int status = pool->body(task, &environment, pool->data);
        if (status != 0) {
            atomic_store(&pool->status, status);
            return;
        }
    }
}

/* Wait for a loop after number `seen`, and return its number. */
static unsigned pool_await(struct pool *pool, unsigned seen)
{
    unsigned now = atomic_load(&pool->generation);
    for (int spin = 0; now == seen && spin < pool->spins; ++spin) {
        SPIN_PAUSE();
        now = atomic_load_explicit(&pool->generation, memory_order_acquire);
    }
    if (now != seen)
        return now;
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleeping, 1);
    while ((now = atomic_load(&pool->generation)) == seen)
        pthread_cond_wait(&pool->changed, &pool->mutex);
    atomic_fetch_sub(&pool->sleeping, 1);
    pthread_mutex_unlock(&pool->mutex);
    return now;
}

static void pool_advance(struct pool *pool)
{
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleeping) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->changed);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static void *pool_work(void *argument)
{
    struct worker *worker = argument;
    struct pool *pool = worker->pool;
    for (unsigned seen = 0;;) {
        seen = pool_await(pool, seen);
        if (atomic_load(&pool->stop))
            return NULL;
        graphopt_current_v1 = pool->frame;
        pool_share(pool, worker->index);
        if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->waiting)) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->finished);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
}

static void pool_finish(struct pool *pool)
{
    for (int spin = 0; spin < pool->spins; ++spin) {
        if (atomic_load_explicit(&pool->pending, memory_order_acquire) == 0)
            return;
        SPIN_PAUSE();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->waiting, true);
    while (atomic_load(&pool->pending) != 0)
        pthread_cond_wait(&pool->finished, &pool->mutex);
    atomic_store(&pool->waiting, false);
    pthread_mutex_unlock(&pool->mutex);
}

/* Run all tasks of a loop; 0, or the status of one that failed. */
static int pool_launch(struct pool *pool, struct graphopt_frame_v1 *frame, parallel_body body, void *data, int tasks)
{
    if (pool->threads == 1 || tasks == 1 || pool->inside)
        return run_in_order(body, data, tasks);
    pool->frame = frame;
    pool->body = body;
    pool->data = data;
    pool->tasks = tasks > 0 ? tasks : pool->threads;
    pool->inside = true;
    atomic_store(&pool->status, 0);
    atomic_store(&pool->pending, pool->threads - 1);
    pool_advance(pool);
    pool_share(pool, 0);
    pool_finish(pool);
    pool->inside = false;
    return atomic_load(&pool->status);
}

static void pool_init(struct pool *pool)
{
    pool->workers = NULL;
    pool->threads = 1;
    pool->inside = false;
    atomic_init(&pool->pending, 0);
    atomic_init(&pool->status, 0);
    atomic_init(&pool->sleeping, 0);
    atomic_init(&pool->waiting, false);
}

/* End the threads: afterwards there is the caller's alone. */
static void pool_stop(struct pool *pool)
{
    if (pool->workers && pool->owner == getpid()) {
        atomic_store(&pool->stop, true);
        pool_advance(pool);
        for (int index = 0; index < pool->threads - 1; ++index)
            pthread_join(pool->workers[index].thread, NULL);
        pthread_cond_destroy(&pool->finished);
        pthread_cond_destroy(&pool->changed);
        pthread_mutex_destroy(&pool->mutex);
    }
    free(pool->workers);
    pool_init(pool);
}

/* After fork() the child has no worker, and locks in an unknown state: forget them. */
static void pool_check_process(struct pool *pool)
{
    if (pool->workers && pool->owner != getpid())
        pool_stop(pool);
}

/* Make threads until there are `threads` with the caller's; false if the system refuses, and then there is one. */
static bool pool_start(struct pool *pool, int threads)
{
    pool_stop(pool);
    if (threads == 1)
        return true;
    pool->workers = malloc((size_t)(threads - 1) * sizeof *pool->workers);
    if (!pool->workers)
        return false;
    pool->owner = getpid();
    pool->spins = threads <= processors() ? SPINS : 0;
    atomic_init(&pool->generation, 0);
    atomic_init(&pool->stop, false);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->changed, NULL);
    pthread_cond_init(&pool->finished, NULL);

    /* The program's signal handlers run on its own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    int made = 0;
    for (; made < threads - 1; ++made) {
        struct worker *worker = &pool->workers[made];
        worker->pool = pool;
        worker->index = made + 1;
        if (pthread_create(&worker->thread, &attributes, pool_work, worker) != 0)
            break;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pool->threads = made + 1;
    if (pool->threads == threads)
        return true;
    pool_stop(pool);
    return false;
}
