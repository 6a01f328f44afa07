/*
 * NVRTC without a compiler, for the tests of compiling. It records its arguments and returns an image made of them. The
 * text of a source controls the compilation:
 *
 *   STUB_RESULT(n)    nvrtcCompileProgram returns n
 *   STUB_LOG(text)    the log; "|" stands for a line break
 *   STUB_DELAY(ms)    how long the compilation takes
 *   STUB_EMPTY        the image is empty: 0 bytes for a CUBIN, only the NUL character for PTX
 *
 * A compilation polls the flow callback every millisecond, if there is one. The stub counts live programs, concurrent
 * compilations, and calls on the JS thread.
 *
 * STUB_NO_FLOW builds a version before 12.8, STUB_HIDE_CUBIN one that is too old. STUB_MAJOR, STUB_MINOR and STUB_ARCHS
 * set its version and architectures.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef STUB_MAJOR
#define STUB_MAJOR 13
#endif
#ifndef STUB_MINOR
#define STUB_MINOR 0
#endif
#ifndef STUB_ARCHS
#define STUB_ARCHS 75, 80, 86, 90, 100
#endif

#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS = 0, INVALID_PROGRAM = 4, NAME_NOT_VALID = 10, CANCELLED = 16 };

typedef int (*Flow)(void *payload, void *reserved);

typedef struct {
  char *source, *name, *image, *log, *record;
  char *expressions[64];
  char *lowered[64];
  int expressionCount;
  bool ptx, empty, compiled;
  Flow flow;
  void *payload;
} Program;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t mainThread;
static int live, compiling, mostCompiling, compilations, cancelled, onMain, versionCalls, createResult, nameResult;
static char *lastRecord;

static void touch(void) {
  if (pthread_equal(pthread_self(), mainThread)) __sync_fetch_and_add(&onMain, 1);
}

/* Appends to growing text. */
static void append(char **to, const char *text) {
  size_t old = *to == NULL ? 0 : strlen(*to);
  *to = realloc(*to, old + strlen(text) + 1);
  strcpy(*to + old, text);
}

static void appendField(char **to, const char *key, const char *value) {
  append(to, key);
  append(to, "=");
  append(to, value);
  append(to, "\x1f");
}

EXPORT void stub_reset(void) {
  pthread_mutex_lock(&lock);
  mainThread = pthread_self();
  compiling = mostCompiling = compilations = cancelled = onMain = createResult = nameResult = 0;
  free(lastRecord);
  lastRecord = NULL;
  pthread_mutex_unlock(&lock);
}

/* 0 live programs, 1 compilations, 2 most at once, 3 cancelled, 4 calls on the main thread, 5 compiling, 6 loads. */
EXPORT int stub_count(int what) {
  pthread_mutex_lock(&lock);
  int counts[] = {live, compilations, mostCompiling, cancelled, onMain, compiling, versionCalls};
  int count = counts[what];
  pthread_mutex_unlock(&lock);
  return count;
}

EXPORT void stub_fail_create(int result) { createResult = result; }
EXPORT void stub_fail_name(int result) { nameResult = result; }

/* The arguments of the last compilation: fields that end with 0x1f, each a key, "=" and a value. */
EXPORT const char *stub_record(void) { return lastRecord == NULL ? "" : lastRecord; }

EXPORT int nvrtcVersion(int *major, int *minor) {
  __sync_fetch_and_add(&versionCalls, 1);
  *major = STUB_MAJOR;
  *minor = STUB_MINOR;
  return SUCCESS;
}

static const int architectures[] = {STUB_ARCHS};

EXPORT int nvrtcGetNumSupportedArchs(int *count) {
  *count = sizeof architectures / sizeof architectures[0];
  return SUCCESS;
}

EXPORT int nvrtcGetSupportedArchs(int *into) {
  memcpy(into, architectures, sizeof architectures);
  return SUCCESS;
}

EXPORT int nvrtcCreateProgram(Program **made, const char *source, const char *name, int count,
                              const char *const *headers, const char *const *includeNames) {
  touch();
  if (createResult != 0) return createResult;
  Program *program = calloc(1, sizeof *program);
  program->source = strdup(source);
  program->name = strdup(name);
  append(&program->record, "");
  appendField(&program->record, "name", name);
  appendField(&program->record, "source", source);
  for (int i = 0; i < count; i++) {
    appendField(&program->record, "header", includeNames[i]);
    appendField(&program->record, "content", headers[i]);
  }
  __sync_fetch_and_add(&live, 1);
  *made = program;
  return SUCCESS;
}

EXPORT int nvrtcDestroyProgram(Program **made) {
  touch();
  Program *program = *made;
  if (program == NULL) return INVALID_PROGRAM;
  for (int i = 0; i < program->expressionCount; i++) {
    free(program->expressions[i]);
    free(program->lowered[i]);
  }
  free(program->source);
  free(program->name);
  free(program->image);
  free(program->log);
  free(program->record);
  free(program);
  *made = NULL;
  __sync_fetch_and_sub(&live, 1);
  return SUCCESS;
}

EXPORT int nvrtcAddNameExpression(Program *program, const char *expression) {
  touch();
  program->expressions[program->expressionCount] = strdup(expression);
  char *lowered = NULL;
  append(&lowered, "_Z_");
  append(&lowered, expression);
  program->lowered[program->expressionCount++] = lowered;
  appendField(&program->record, "expression", expression);
  return SUCCESS;
}

#ifndef STUB_NO_FLOW
EXPORT int nvrtcSetFlowCallback(Program *program, Flow flow, void *payload) {
  program->flow = flow;
  program->payload = payload;
  return SUCCESS;
}
#endif

/* The number or text in the parentheses after a word of the source. */
static const char *argument(const char *source, const char *word) {
  const char *at = strstr(source, word);
  return at == NULL ? NULL : at + strlen(word) + 1;
}

static int number(const char *source, const char *word) {
  const char *at = argument(source, word);
  return at == NULL ? 0 : atoi(at);
}

static void takeLog(Program *program) {
  append(&program->log, "");
  const char *at = argument(program->source, "STUB_LOG");
  if (at == NULL) return;
  const char *end = strstr(at, "END_LOG");
  program->log = realloc(program->log, end - at + 1);
  memcpy(program->log, at, end - at);
  program->log[end - at] = 0;
  for (char *c = program->log; *c != 0; c++) *c = *c == '|' ? '\n' : *c;
}

/* Uses as much stack as a compiler: 128 KiB are not enough. */
static __attribute__((noinline)) int nest(int depth) {
  volatile char frame[64 * 1024];
  memset((void *)frame, depth, sizeof frame);
  return depth == 0 ? frame[7] : nest(depth - 1) + frame[9];
}

static bool wait(Program *program, int milliseconds) {
  for (int i = 0; i < milliseconds; i++) {
    if (program->flow != NULL && program->flow(program->payload, NULL) == 1) return false;
    usleep(1000);
  }
  return true;
}

EXPORT int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
  touch();
  pthread_mutex_lock(&lock);
  compilations++;
  if (++compiling > mostCompiling) mostCompiling = compiling;
  pthread_mutex_unlock(&lock);
  nest(40);
  for (int i = 0; i < count; i++) {
    appendField(&program->record, "option", options[i]);
    if (strstr(options[i], "--gpu-architecture=compute_") != NULL) program->ptx = true;
  }
  takeLog(program);
  int status = number(program->source, "STUB_RESULT");
  if (!wait(program, number(program->source, "STUB_DELAY"))) status = CANCELLED;
  program->empty = strstr(program->source, "STUB_EMPTY") != NULL;
  program->compiled = status == SUCCESS;
  append(&program->image, program->empty ? "" : program->ptx ? "// stub\n.version 8.0\n.target sm_90\n" : "\x7f" "ELF stub ");
  append(&program->image, program->empty ? "" : program->source);
  pthread_mutex_lock(&lock);
  compiling--;
  if (status == CANCELLED) cancelled++;
  free(lastRecord);
  lastRecord = strdup(program->record);
  pthread_mutex_unlock(&lock);
  return status;
}

static int sizeOf(const Program *program, bool ptx, size_t *size) {
  touch();
  if (!program->compiled) return INVALID_PROGRAM;
  *size = program->ptx != ptx ? 0 : strlen(program->image) + (ptx ? 1 : 0);
  return SUCCESS;
}

static int copy(const Program *program, bool ptx, char *into) {
  size_t size = 0;
  int status = sizeOf(program, ptx, &size);
  if (status == SUCCESS) memcpy(into, program->image, size);
  return status;
}

EXPORT int nvrtcGetPTXSize(Program *program, size_t *size) { return sizeOf(program, true, size); }
EXPORT int nvrtcGetPTX(Program *program, char *into) { return copy(program, true, into); }
#ifndef STUB_HIDE_CUBIN
EXPORT int nvrtcGetCUBINSize(Program *program, size_t *size) { return sizeOf(program, false, size); }
EXPORT int nvrtcGetCUBIN(Program *program, char *into) { return copy(program, false, into); }
#endif

EXPORT int nvrtcGetProgramLogSize(Program *program, size_t *size) {
  touch();
  *size = strlen(program->log == NULL ? "" : program->log) + 1;
  return SUCCESS;
}

EXPORT int nvrtcGetProgramLog(Program *program, char *into) {
  touch();
  strcpy(into, program->log == NULL ? "" : program->log);
  return SUCCESS;
}

EXPORT int nvrtcGetLoweredName(Program *program, const char *expression, const char **lowered) {
  touch();
  if (nameResult != 0) return nameResult;
  for (int i = 0; i < program->expressionCount; i++) {
    if (strcmp(program->expressions[i], expression) != 0) continue;
    *lowered = program->lowered[i];
    return SUCCESS;
  }
  return NAME_NOT_VALID;
}
