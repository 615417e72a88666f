/* Files that fail, for programs that this is preloaded into: reads, writes and synchronizations of what lies in the folder FAULTS_IN, with a
 * name or without, do what FAULTS says.
 *   short             each moves half of the bytes, or one
 *   write AT ERRNO    once AT bytes are written in all, no more are; who would cross that writes up to there
 *   read AT ERRNO     the same of reading
 *   sync 0 ERRNO      nothing reaches the disk
 * In the end, the bytes that were moved are printed as `moved N`. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic long moved;

static int concerns(int file) {
  const char *folder = getenv("FAULTS_IN");
  char link[64], name[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t len = readlink(link, name, sizeof name);
  return folder && len > (ssize_t)strlen(folder) && !strncmp(name, folder, strlen(folder));
}

/* How many of `bytes` may be moved, or -1. */
static ssize_t allowed(const char *what, int file, size_t bytes) {
  const char *faults = getenv("FAULTS");
  char kind[16];
  long at = 0;
  int error = 0;
  int known = faults ? sscanf(faults, "%15s %ld %d", kind, &at, &error) : 0;
  if (known < 1 || !concerns(file))
    return (ssize_t)bytes;
  if (!strcmp(kind, "short"))
    return (ssize_t)(bytes - bytes / 2);
  if (strcmp(kind, what))
    return (ssize_t)bytes;
  long before = atomic_fetch_add(&moved, (long)bytes);
  if (before + (long)bytes <= at)
    return (ssize_t)bytes;
  atomic_store(&moved, at);
  if (before < at)
    return at - before;
  errno = error;
  return -1;
}

ssize_t write(int file, const void *bytes, size_t len) {
  ssize_t most = allowed("write", file, len);
  return most < 0 ? most : syscall(SYS_write, file, bytes, most);
}

ssize_t pwrite64(int file, const void *bytes, size_t len, off64_t at) {
  ssize_t most = allowed("write", file, len);
  return most < 0 ? most : syscall(SYS_pwrite64, file, bytes, most, at);
}

ssize_t read(int file, void *bytes, size_t len) {
  ssize_t most = allowed("read", file, len);
  return most < 0 ? most : syscall(SYS_read, file, bytes, most);
}

ssize_t pread64(int file, void *bytes, size_t len, off64_t at) {
  ssize_t most = allowed("read", file, len);
  return most < 0 ? most : syscall(SYS_pread64, file, bytes, most, at);
}

int fsync(int file) { return allowed("sync", file, 1) < 0 ? -1 : (int)syscall(SYS_fsync, file); }

__attribute__((destructor)) static void tell(void) {
  fprintf(stderr, "moved %ld\n", atomic_load(&moved));
}
