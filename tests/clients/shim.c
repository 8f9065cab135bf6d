/* What the machine tells a process, as a test wants it: the wall clock and the names of hosts. Loaded by LD_PRELOAD;
   compiled by test_failures_routers.py. Files in $SHIM: `clock` holds the seconds that the wall clock is off, `nxdomain`
   is there while no name can be resolved. The monotonic clock is never touched. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static FILE *opened(const char *name) {
  char path[4096];
  const char *dir = getenv("SHIM");
  if (!dir) return NULL;
  snprintf(path, sizeof path, "%s/%s", dir, name);
  return fopen(path, "r");
}

static long off(void) {
  long seconds = 0;
  FILE *file = opened("clock");
  if (!file) return 0;
  if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
  fclose(file);
  return seconds;
}

int clock_gettime(clockid_t id, struct timespec *at) {
  int result = (int)syscall(SYS_clock_gettime, id, at);
  if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += off();
  return result;
}

int gettimeofday(struct timeval *at, void *zone) {
  int result = (int)syscall(SYS_gettimeofday, at, zone);
  if (result == 0) at->tv_sec += off();
  return result;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
  if (name && !strcmp(name, "router.test")) {
    FILE *file = opened("nxdomain");
    if (file) {
      fclose(file);
      return EAI_NONAME;
    }
    name = "127.0.0.1";
  }
  return real(name, service, hints, found);
}
