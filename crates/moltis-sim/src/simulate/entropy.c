/*
 * Where a simulated world gets its randomness and its time of day.
 *
 * Linked into the program, these two stand before the C library's own: what std, the getrandom
 * crate and tokio ask the system for comes from here. With MOLTIS_SIM_SEED in the environment all
 * random bytes follow from that number and every clock stands still (the runtime's own, which is
 * paused, goes on); without it the question is passed on. Rust code needs no word of this, and so
 * no `unsafe`.
 *
 * Each thread but the first has the same stream from its beginning, so that it does not matter
 * which of them asks first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* 2100-01-01 and 31 years of uptime: later than any real clock, so that no real wait is over. */
#define TIME_OF_DAY 4102444800
#define UPTIME 1000000000

enum { UNKNOWN, PASSING_ON, SEEDED };

static int mode = UNKNOWN;
static uint64_t seed;
static _Thread_local uint64_t state;
static _Thread_local int begun;

static int is_seeded(void) {
    if (mode == UNKNOWN) {
        const char *text = getenv("MOLTIS_SIM_SEED");
        if (text != NULL) {
            seed = strtoull(text, NULL, 10);
        }
        mode = text == NULL ? PASSING_ON : SEEDED;
    }
    return mode == SEEDED;
}

/* SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
static uint64_t next(void) {
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static void begin(void) {
    int is_first = syscall(SYS_gettid) == getpid();
    state = seed ^ (is_first ? 0 : 0x5851f42d4c957f2d);
    begun = 1;
}

ssize_t getrandom(void *into, size_t length, unsigned int flags) {
    if (!is_seeded()) {
        return syscall(SYS_getrandom, into, length, flags);
    }
    if (!begun) {
        begin();
    }
    unsigned char *to = into;
    for (size_t left = length; left > 0;) {
        uint64_t word = next();
        size_t some = left < sizeof word ? left : sizeof word;
        memcpy(to, &word, some);
        to += some;
        left -= some;
    }
    return (ssize_t)length;
}

int clock_gettime(clockid_t clock, struct timespec *into) {
    static int (*system_clock)(clockid_t, struct timespec *);
    if (is_seeded()) {
        into->tv_sec = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE ? TIME_OF_DAY : UPTIME;
        into->tv_nsec = 0;
        return 0;
    }
    if (system_clock == NULL) {
        /* The C library's own asks the kernel without a system call. */
        system_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    }
    return system_clock(clock, into);
}

/*
 * Whoever is woken in a world waits until its waker has nothing more to do (sched(7), SCHED_BATCH):
 * else most answers of SQLite's thread to the one that asks are two switches more.
 */
__attribute__((constructor)) static void take_turns(void) {
    if (is_seeded()) {
        struct sched_param param = {0};
        sched_setscheduler(0, SCHED_BATCH, &param); /* it is slower without, and the same */
    }
}
