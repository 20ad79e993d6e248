/* Weights that are made of the stored ones: by the first context, freed with the last.
 * Included by the generated driver, which defines NAME, DECODED_BYTES and make_weights().
 */
#include <pthread.h>
#include <stdlib.h>

static pthread_mutex_t decoded_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned char *decoded_memory; /* NULL without users */
static size_t decoded_users;

static unsigned char *decoded_make(void)
{
    void *memory;
    if (posix_memalign(&memory, 64, (size_t)DECODED_BYTES) != 0)
        return NULL;
    if (make_weights(memory) != 0) {
        free(memory);
        return NULL;
    }
    return memory;
}

/* NULL if memory is short, or the library damaged. Every other call needs a decoded_release(). */
static const unsigned char *decoded_acquire(void)
{
    pthread_mutex_lock(&decoded_lock);
    if (!decoded_memory)
        decoded_memory = decoded_make();
    const unsigned char *memory = decoded_memory;
    decoded_users += memory != NULL;
    pthread_mutex_unlock(&decoded_lock);
    return memory;
}

static void decoded_release(void)
{
    pthread_mutex_lock(&decoded_lock);
    if (--decoded_users == 0) {
        free(decoded_memory);
        decoded_memory = NULL;
    }
    pthread_mutex_unlock(&decoded_lock);
}
