/* A plugin for qemu-user 7.2 and later: how many instructions each thread executes between the markers of example.c.
 *
 *     gcc -O2 -shared -fPIC tests/benchmarks/threads.c -o threads.so
 *     qemu-aarch64 -cpu cortex-a76 -plugin ./threads.so ./example -t 4
 *
 * With `-plugin ./threads.so,whole=on` all is counted, for programs of 32 bits, which have no markers.
 *
 * Prints, for each thread, millions of instructions of work, and of waiting: blocks with a `yield`, which the pool spins on.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* What is used of qemu-plugin.h, which Debian's packages do not ship. */
struct tb;
struct instruction;
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*)(uint64_t id, struct tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct tb *, void (*)(unsigned thread, void *), int flags, void *);
extern void qemu_plugin_register_atexit_cb(uint64_t id, void (*)(uint64_t id, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct tb *);
extern struct instruction *qemu_plugin_tb_get_insn(const struct tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct instruction *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum { THREADS = 64 };
enum { YIELD = 0xD503203F, BEGIN = 0xD5032E3F, END = 0xD5032E5F }; /* hint #1, #0x71, #0x72 */

static struct {
    uint64_t work, waiting;
    char apart[48]; /* a cache line for each thread */
} counts[THREADS];
static volatile bool counting;

static void on_begin(unsigned thread, void *length) { (void)thread, (void)length, counting = true; }
static void on_end(unsigned thread, void *length) { (void)thread, (void)length, counting = false; }
static void on_work(unsigned thread, void *length) { counts[thread % THREADS].work += counting ? (uintptr_t)length : 0; }
static void on_wait(unsigned thread, void *length) { counts[thread % THREADS].waiting += counting ? (uintptr_t)length : 0; }

static void on_translate(uint64_t id, struct tb *tb)
{
    (void)id;
    size_t length = qemu_plugin_tb_n_insns(tb);
    void (*on_execute)(unsigned, void *) = on_work;
    for (size_t i = 0; i < length; ++i) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
        if (word == BEGIN || word == END)
            on_execute = word == BEGIN ? on_begin : on_end;
        else if (word == YIELD && on_execute == on_work)
            on_execute = on_wait;
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execute, 0, (void *)(uintptr_t)length);
}

static void on_exit(uint64_t id, void *data)
{
    (void)id, (void)data;
    for (int i = 0; i < THREADS; ++i)
        if (counts[i].work || counts[i].waiting)
            fprintf(stderr, "thread %d: work %.3f waiting %.3f\n", i, counts[i].work / 1e6, counts[i].waiting / 1e6);
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; ++i)
        if (strcmp(argv[i], "whole=on") == 0)
            counting = true;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_atexit_cb(id, on_exit, NULL);
    return 0;
}
