/* A load of mixed commands: prepared capsules out, every reply's header looked at.
 *
 * Loaded with ctypes by mixed.py, which holds the same struct. Replies may come in any order and have any size;
 * a command is done with its response, or with data that carries the SUCCESS flag. R2Ts are answered from `payload`.
 * Digests are off.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

enum { RX_BYTES = 1 << 20, SLOTS = 4096, IOVECS = 1024, HEADER = 24, STALL_SECONDS = 5, LATENCIES = 1 << 18 };
enum { OK = 0, PEER_CLOSED = -1, STALLED = -2, UNEXPECTED = -3, QUEUE_FULL = -4 };

struct loadmix {
    const uint8_t *commands; /* the capsules, one behind the other */
    const uint64_t *starts;  /* where each begins, and the end: `ring` + 1 */
    const uint8_t *payload;
    int32_t fd;
    uint32_t ring, depth, batch, spin;
    uint64_t done, sent, rx_bytes, tx_bytes, recv_calls, send_calls;
    uint32_t error_head[6];
    uint32_t latency_count;
    uint32_t latencies_ns[LATENCIES];
    /* own */
    uint32_t head, tail, offset, have;
    uint64_t skip, tag, tag_ns;
    uint32_t success;
    struct { struct iovec v[2]; uint8_t head[HEADER]; } slots[SLOTS];
    uint8_t rx[RX_BYTES];
};

uint64_t mix_size(void) { return sizeof(struct loadmix); }

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int push(struct loadmix *g, const void *a, uint64_t an, const void *b, uint64_t bn) {
    uint32_t next = (g->tail + 1) % SLOTS;
    if (next == g->head) return QUEUE_FULL;
    g->slots[g->tail].v[0] = (struct iovec){(void *)a, an};
    g->slots[g->tail].v[1] = (struct iovec){(void *)b, bn};
    g->tail = next;
    return OK;
}

static int refill(struct loadmix *g, uint64_t t) {
    uint64_t before = g->sent;
    if (g->sent - g->done + g->batch > g->depth) return OK;
    while (g->sent - g->done < g->depth) {
        uint32_t i = (uint32_t)(g->sent % g->ring);
        int rc = push(g, g->commands + g->starts[i], g->starts[i + 1] - g->starts[i], 0, 0);
        if (rc) return rc;
        g->sent++;
    }
    if (g->sent != before && !g->tag) {
        g->tag = g->sent;
        g->tag_ns = t;
    }
    return OK;
}

static int flush_out(struct loadmix *g) {
    while (g->head != g->tail) {
        struct iovec iov[IOVECS];
        uint32_t count = 0;
        uint64_t want = 0, skip = g->offset;
        for (uint32_t s = g->head; s != g->tail && count + 2 <= IOVECS; s = (s + 1) % SLOTS)
            for (int k = 0; k < 2; k++) {
                uint8_t *base = g->slots[s].v[k].iov_base;
                uint64_t len = g->slots[s].v[k].iov_len;
                if (skip >= len) { skip -= len; continue; }
                iov[count++] = (struct iovec){base + skip, len - skip};
                want += len - skip;
                skip = 0;
            }
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = count};
        ssize_t n = sendmsg(g->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
        g->send_calls++;
        if (n < 0) return errno == EAGAIN || errno == EINTR ? OK : errno;
        g->tx_bytes += (uint64_t)n;
        uint64_t taken = (uint64_t)n + g->offset;
        while (g->head != g->tail) {
            uint64_t size = g->slots[g->head].v[0].iov_len + g->slots[g->head].v[1].iov_len;
            if (taken < size) break;
            taken -= size;
            g->head = (g->head + 1) % SLOTS;
        }
        g->offset = (uint32_t)taken;
        if ((uint64_t)n < want) return OK;
    }
    return OK;
}

static void completed(struct loadmix *g, uint64_t t) {
    g->done++;
    if (g->tag && g->done >= g->tag) {
        if (g->latency_count < LATENCIES) g->latencies_ns[g->latency_count++] = (uint32_t)(t - g->tag_ns);
        g->tag = 0;
    }
}

static int answer_r2t(struct loadmix *g, const uint8_t *p) {
    uint8_t *h = g->slots[g->tail].head;
    uint32_t length, plen;
    memcpy(&length, p + 16, 4);
    plen = HEADER + length;
    memset(h, 0, HEADER);
    h[0] = 6, h[1] = 4, h[2] = HEADER, h[3] = HEADER;
    memcpy(h + 4, &plen, 4);
    memcpy(h + 8, p + 8, 12); /* CCCID, TTAG, offset, length */
    return push(g, h, HEADER, g->payload, length);
}

static int take(struct loadmix *g, uint32_t n, uint64_t t) {
    uint32_t at = 0, end = g->have + n;
    while (at < end) {
        if (g->skip) {
            uint64_t here = g->skip < end - at ? g->skip : end - at;
            g->skip -= here;
            at += (uint32_t)here;
            if (!g->skip && g->success) completed(g, t);
            continue;
        }
        if (end - at < HEADER) break;
        const uint8_t *p = g->rx + at;
        uint32_t plen;
        memcpy(&plen, p + 4, 4);
        int rc = OK;
        if (p[0] == 7) {
            g->skip = plen;
            g->success = p[1] & 8;
            continue;
        }
        if (p[0] == 9) rc = answer_r2t(g, p);
        else if (p[0] == 5 && !((p[22] | p[23] << 8) >> 1)) completed(g, t);
        else rc = UNEXPECTED;
        if (rc == UNEXPECTED) memcpy(g->error_head, p, HEADER);
        if (rc) return rc;
        at += plen;
    }
    memmove(g->rx, g->rx + at, end - at);
    g->have = end - at;
    return OK;
}

/* Run for `seconds`; `refilling` 0: only drain. Returns an enum value or an errno. */
int mix_run(struct loadmix *g, double seconds, int refilling) {
    uint64_t t = now_ns(), end = t + (uint64_t)(seconds * 1e9), last = t;
    uint32_t idle = 0;
    while (t < end) {
        int rc = refilling ? refill(g, t) : OK;
        if (rc || (rc = flush_out(g))) return rc;
        if (!refilling && g->done == g->sent) return OK;
        ssize_t n = recv(g->fd, g->rx + g->have, RX_BYTES - g->have, MSG_DONTWAIT);
        if (n > 0) {
            t = last = now_ns();
            idle = 0;
            g->recv_calls++;
            g->rx_bytes += (uint64_t)n;
            if ((rc = take(g, (uint32_t)n, t))) return rc;
        } else if (n == 0) {
            return PEER_CLOSED;
        } else if (errno != EAGAIN && errno != EINTR) {
            return errno;
        } else {
            if (!g->spin) {
                struct pollfd p = {g->fd, POLLIN | (g->head != g->tail ? POLLOUT : 0), 0};
                poll(&p, 1, 100);
                t = now_ns();
            } else if (++idle % 16 == 0) {
                t = now_ns();
            }
            if (t - last > STALL_SECONDS * 1000000000ull) return STALLED;
        }
    }
    return OK;
}
