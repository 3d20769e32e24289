/* What Python is too slow for, or cannot ask the system for.

   Reading: a pool of threads copies records of files, or of maps of them, into many pieces of memory each. They never need
   the interpreter: a batch costs it one call to begin and one to wait. A pool does not survive fork(2).

   Maps: of files in memory, at addresses that huge pages fit. */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* ---- reading */

enum { FILES, MAPS, OFFSETS, STARTS, PIECES, GOT, ARRAYS };

typedef struct batch {
    PyObject *pool, *keep; /* references: the pool, and who owns the memory, outlive the batch */
    Py_buffer arrays[ARRAYS];
    int64_t n, share; /* records, and those that a thread takes at a time */
    int64_t next;     /* the first record that no thread has taken */
    int running;      /* threads that copy records of it */
    struct batch *after;
} batch;

typedef struct {
    atomic_int stopping;
    pthread_mutex_t lock; /* of all below, and of next, running and after of each batch */
    pthread_cond_t begun, ended;
    batch *first, *last; /* a queue of those with records that no thread has taken */
    int count;
    pthread_t threads[];
} pool;

static int64_t from_map(const char *record, const struct iovec *pieces, int64_t count)
{
    int64_t done = 0;
    for (int64_t k = 0; k < count; k++) {
        memcpy(pieces[k].iov_base, record + done, pieces[k].iov_len);
        done += pieces[k].iov_len;
    }
    return done;
}

static int64_t from_file(int file, int64_t offset, const struct iovec *pieces, int64_t count)
{
    ssize_t got;
    do
        got = preadv(file, pieces, (int)count, offset);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

static void copy(const pool *p, const batch *b, int64_t first, int64_t end)
{
    const int32_t *file = b->arrays[FILES].buf;
    const char *const *map = b->arrays[MAPS].buf;
    const int64_t *offset = b->arrays[OFFSETS].buf, *start = b->arrays[STARTS].buf;
    const struct iovec *piece = b->arrays[PIECES].buf;
    int64_t *got = b->arrays[GOT].buf;
    for (int64_t i = first; i < end && !atomic_load(&p->stopping); i++) {
        const struct iovec *own = piece + start[i];
        int64_t count = start[i + 1] - start[i];
        got[i] = map[i] ? from_map(map[i] + offset[i], own, count) : from_file(file[i], offset[i], own, count);
    }
}

static int ended(const batch *b) { return b->next == b->n && !b->running; }

static void *work(void *given)
{
    pool *p = given;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->first && !p->stopping)
            pthread_cond_wait(&p->begun, &p->lock);
        if (p->stopping)
            break;
        batch *b = p->first;
        int64_t first = b->next, end = first + b->share < b->n ? first + b->share : b->n;
        b->next = end;
        b->running++;
        if (end == b->n)
            p->first = b->after;
        pthread_mutex_unlock(&p->lock);
        copy(p, b, first, end);
        pthread_mutex_lock(&p->lock);
        b->running--;
        if (ended(b))
            pthread_cond_broadcast(&p->ended);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* What has not been read is left, but for the records that threads are reading just now: these are waited for, even where
   a filesystem hangs, as the kernel writes into their memory. */
static void end_threads(pool *p)
{
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stopping, 1);
    for (; p->first; p->first = p->first->after)
        p->first->next = p->first->n;
    pthread_cond_broadcast(&p->begun);
    pthread_cond_broadcast(&p->ended);
    int mine = p->count; /* who comes second joins none */
    p->count = 0;
    pthread_mutex_unlock(&p->lock);
    while (mine)
        pthread_join(p->threads[--mine], NULL);
}

static void free_pool(PyObject *capsule)
{
    pool *p = PyCapsule_GetPointer(capsule, "pool");
    Py_BEGIN_ALLOW_THREADS
    end_threads(p);
    Py_END_ALLOW_THREADS
    free(p);
}

static void free_batch(PyObject *capsule)
{
    batch *b = PyCapsule_GetPointer(capsule, "batch");
    pool *p = PyCapsule_GetPointer(b->pool, "pool");
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&p->lock);
    while (!ended(b))
        pthread_cond_wait(&p->ended, &p->lock);
    pthread_mutex_unlock(&p->lock);
    Py_END_ALLOW_THREADS
    for (int i = 0; i < ARRAYS; i++)
        PyBuffer_Release(b->arrays + i);
    Py_DECREF(b->pool);
    Py_DECREF(b->keep);
    free(b);
}

static PyObject *start(PyObject *module, PyObject *args)
{
    int threads;
    if (!PyArg_ParseTuple(args, "i", &threads))
        return NULL;
    if (threads < 1) {
        PyErr_SetString(PyExc_ValueError, "a pool has one thread at least");
        return NULL;
    }
    pool *p = calloc(1, sizeof *p + threads * sizeof *p->threads);
    if (!p)
        return PyErr_NoMemory();
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->begun, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&p->ended, &clock);
    PyObject *capsule = PyCapsule_New(p, "pool", free_pool);
    if (!capsule) {
        free(p);
        return NULL;
    }
    sigset_t all, before; /* signals are for the interpreter's threads */
    sigfillset(&all);
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL}; /* but for what a thread itself raises */
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        sigdelset(&all, own[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = 0;
    while (p->count < threads && !(failed = pthread_create(p->threads + p->count, NULL, work, p)))
        pthread_setname_np(p->threads[p->count++], "feed-read");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        Py_DECREF(capsule);
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return capsule;
}

static PyObject *stop(PyObject *module, PyObject *capsule)
{
    pool *p = PyCapsule_GetPointer(capsule, "pool");
    if (!p)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    end_threads(p);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static int fits(const batch *b)
{
    static const int64_t sizes[] = {sizeof(int32_t), sizeof(void *), sizeof(int64_t)};
    const int64_t *start = b->arrays[STARTS].buf;
    for (int i = FILES; i <= OFFSETS; i++)
        if (b->arrays[i].len != b->n * sizes[i])
            return 0;
    if (b->arrays[STARTS].len != (b->n + 1) * (int64_t)sizeof *start || start[0] < 0)
        return 0;
    for (int64_t i = 0; i < b->n; i++)
        if (start[i] > start[i + 1])
            return 0;
    return start[b->n] <= b->arrays[PIECES].len / (int64_t)sizeof(struct iovec);
}

static PyObject *begin(PyObject *module, PyObject *args)
{
    int ways;
    batch *b = calloc(1, sizeof *b);
    if (!b)
        return PyErr_NoMemory();
    Py_buffer *a = b->arrays;
    if (!PyArg_ParseTuple(args, "Oiy*y*y*y*y*w*O", &b->pool, &ways, a, a + 1, a + 2, a + 3, a + 4, a + 5, &b->keep)) {
        free(b);
        return NULL;
    }
    Py_INCREF(b->pool);
    Py_INCREF(b->keep);
    pool *p = PyCapsule_GetPointer(b->pool, "pool");
    PyObject *capsule = p ? PyCapsule_New(b, "batch", free_batch) : NULL;
    if (!capsule) {
        for (int i = 0; i < ARRAYS; i++)
            PyBuffer_Release(a + i);
        Py_DECREF(b->pool);
        Py_DECREF(b->keep);
        free(b);
        return NULL;
    }
    b->n = b->next = a[GOT].len / sizeof(int64_t); /* nothing to read before it is in the queue */
    if (!fits(b) || ways < 1) {
        Py_DECREF(capsule);
        PyErr_SetString(PyExc_ValueError, "files, maps, offsets, starts, pieces and got do not fit each other");
        return NULL;
    }
    b->share = (b->n + ways - 1) / ways;
    pthread_mutex_lock(&p->lock);
    int stopping = atomic_load(&p->stopping);
    if (b->n && !stopping) {
        b->next = 0;
        if (p->first)
            p->last->after = b;
        else
            p->first = b;
        p->last = b;
        if (ways > 1)
            pthread_cond_broadcast(&p->begun);
        else
            pthread_cond_signal(&p->begun);
    }
    pthread_mutex_unlock(&p->lock);
    if (stopping) {
        Py_DECREF(capsule);
        PyErr_SetString(PyExc_ValueError, "the pool has ended");
        return NULL;
    }
    return capsule;
}

static PyObject *wait(PyObject *module, PyObject *capsule)
{
    batch *b = PyCapsule_GetPointer(capsule, "batch");
    if (!b)
        return NULL;
    pool *p = PyCapsule_GetPointer(b->pool, "pool");
    for (int done = 0; !done;) {
        Py_BEGIN_ALLOW_THREADS
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 200000000; /* then the interpreter looks for signals, as a filesystem may hang */
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_mutex_lock(&p->lock);
        for (int late = 0; !(done = ended(b)) && !late;)
            late = pthread_cond_timedwait(&p->ended, &p->lock, &until) == ETIMEDOUT;
        pthread_mutex_unlock(&p->lock);
        Py_END_ALLOW_THREADS
        if (!done && PyErr_CheckSignals())
            return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- maps */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1; older headers and kernels do not know it */
#endif
#define HUGE_PAGE (2 << 20) /* bytes; where huge pages have another size there will be none */

static void unmap(PyObject *capsule)
{
    munmap(PyCapsule_GetPointer(capsule, "map"), (size_t)(uintptr_t)PyCapsule_GetContext(capsule));
}

static PyObject *map(PyObject *module, PyObject *args)
{
    int file;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "in", &file, &size))
        return NULL;
    /* more than is wanted, of which the part that begins on a huge page is taken */
    size_t all = size + HUGE_PAGE;
    char *room = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    char *begin = (char *)(((uintptr_t)room + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    if (mmap(begin, size, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        munmap(room, all);
        return NULL;
    }
    size_t page = sysconf(_SC_PAGESIZE);
    char *end = begin + (size + page - 1) / page * page;
    if (begin > room)
        munmap(room, begin - room);
    if (room + all > end)
        munmap(end, room + all - end);
    PyObject *capsule = PyCapsule_New(begin, "map", unmap);
    if (!capsule) {
        munmap(begin, size);
        return NULL;
    }
    PyCapsule_SetContext(capsule, (void *)(uintptr_t)size);
    return Py_BuildValue("NK", capsule, (unsigned long long)(uintptr_t)begin);
}

static PyObject *collapse(PyObject *module, PyObject *args)
{
    unsigned long long address;
    Py_ssize_t size;
    int failed;
    if (!PyArg_ParseTuple(args, "Kn", &address, &size))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = size < HUGE_PAGE || madvise((void *)(uintptr_t)address, size / HUGE_PAGE * HUGE_PAGE, MADV_COLLAPSE);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(!failed);
}

static PyMethodDef methods[] = {
    {"start", start, METH_VARARGS, "start(threads): a pool of threads that read, one at least. OSError."},
    {"stop", stop, METH_O, "stop(pool): end its threads. What they have not read stays unread."},
    {"begin", begin, METH_VARARGS,
     "begin(pool, ways, files, maps, offsets, starts, pieces, got, keep): a batch that the pool's threads read from\n"
     "now on, in up to so many parts.\n\n"
     "files: (n,) int32 descriptors; maps: (n,) uint64 addresses at which they are mapped, 0: they are not; offsets:\n"
     "(n,) int64, bytes; starts: (n + 1,) int64, each record's first piece, and the end; pieces: (m,) of address and\n"
     "size, uint64; got: (n,) int64, becomes each record's bytes, fewer where its file ends, or -errno; keep: whoever\n"
     "owns the memory of pieces and maps. ValueError where their sizes do not fit, or the pool has ended."},
    {"wait", wait, METH_O, "wait(batch): until it has been read."},
    {"map", map, METH_VARARGS,
     "map(file, size): a map of the file to be read, as long as it is referred to, and its address, on a huge page's\n"
     "border. OSError."},
    {"collapse", collapse, METH_VARARGS,
     "collapse(address, size): put the whole huge pages' worth of what is mapped there, memory, into such. False where\n"
     "that is not done, or not for all of it: the kernel is older than 6.1, or memory is in pieces."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntMacro(made, HUGE_PAGE))
        Py_CLEAR(made);
    return made;
}
