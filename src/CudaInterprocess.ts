/**
 * Device memory shared with other processes: pools and buffers that one process exports and others open, and the order between them.
 *
 * A `MemoryToken` is a plain value, which can be sent as JSON. Memory of a pool also needs the pool's descriptor, which a child process
 * inherits; memory of `allocate` needs nothing else. Depends on the `CudaRuntime` interface, on `CudaEvent`, `CudaMemory` and
 * `CudaMemoryPool`. Needs Linux: other systems have no such descriptors, and are untested.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { dual } from "effect/Function"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"
import type { DeviceInput } from "./CudaDevice.ts"
import { CudaError } from "./CudaError.ts"
import * as CudaEvent from "./CudaEvent.ts"
import * as CudaMemory from "./CudaMemory.ts"
import type { BufferOptions, DeviceBuffer, Slice } from "./CudaMemory.ts"
import { MemoryPoolImpl } from "./CudaMemoryPool.ts"
import type { MemoryPool } from "./CudaMemoryPool.ts"
import type { CudaStream } from "./CudaStream.ts"
import { rangeOf, refOfPool, refuseForced, runtimeOfPart, runtimeOfPool, wrongHandleOf } from "./internal/given.ts"
import { named, refuseArgument, released } from "./internal/handles.ts"
import { CurrentOrdering } from "./internal/ordered.ts"
import { resolveDevice } from "./internal/place.ts"
import { makeScoped } from "./internal/scoped.ts"
import { CudaRuntime, CurrentWaitOptions } from "./layers/CudaRuntime.ts"
import type { SharedMemory } from "./layers/CudaRuntime.ts"

const MemoryTokenTag = "effect-cuda/MemoryToken"
const PoolTokenTag = "effect-cuda/PoolToken"

/**
 * What another process needs to open memory: a plain value, for JSON or messages between processes. Bytes are in base64.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryToken {
  readonly _tag: "effect-cuda/MemoryToken"
  /** Memory of a pool, or an allocation of its own. */
  readonly kind: "pool" | "allocation"
  /** The driver's 64 bytes, which stand for the whole allocation. */
  readonly handle: string
  /** Bytes from the start of the allocation. */
  readonly offset: number
  readonly byteLength: number
  /** The UUID of its device; default: that of the process that opens it. */
  readonly device?: string | undefined
  /** Identifies its pool. */
  readonly pool?: string | undefined
  /** Identifies the process that it is of. */
  readonly origin?: string | undefined
  /** The handle of an event that is recorded when the memory is ready. */
  readonly ready?: string | undefined
  /** The handle of an event that the other process records when it has released the memory. */
  readonly returned?: string | undefined
}

/**
 * What another process needs to open a pool, besides its descriptor: a plain value, for JSON or messages between processes.
 *
 * @category models
 * @since 0.1.0
 */
export interface PoolToken {
  readonly _tag: "effect-cuda/PoolToken"
  /** Identifies the pool. */
  readonly id: string
  /** The UUID of its device. */
  readonly device: string
}

/**
 * A pool that other processes can open.
 *
 * @category models
 * @since 0.1.0
 */
export interface SharedPool {
  readonly token: PoolToken
  /** A descriptor of this process. Other processes need their own copy of it. */
  readonly descriptor: number
}

/**
 * Exports a pool made with `CudaMemoryPool.make({ shareable: true })`, as a descriptor that is closed with the scope
 * (`cuMemPoolExportToShareableHandle`).
 *
 * **Details**
 *
 * A child process inherits the descriptor in the `stdio` of `spawn` or `fork`, where its index is its number in the child. Any process
 * that may debug this one can copy it with `takeDescriptor`. Other ways are `SCM_RIGHTS` messages over Unix sockets, which Node.js does
 * not send.
 *
 * Closing the descriptor affects nobody who has a copy. Fails with `InvalidArgument` for a pool that is not shareable.
 *
 * **Example** (A child process that opens a pool)
 *
 * ```ts
 * import { CudaInterprocess, CudaMemory, CudaMemoryPool } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import { fork } from "node:child_process"
 *
 * const sent = Effect.gen(function*() {
 *   const pool = yield* CudaMemoryPool.make({ shareable: true })
 *   const { descriptor, token } = yield* CudaInterprocess.sharePool(pool)
 *   // In the child, the descriptor is 4.
 *   const child = fork("worker.js", { stdio: ["inherit", "inherit", "inherit", "ipc", descriptor] })
 *   const buffer = yield* CudaMemory.allocate(4096, { pool })
 *   child.send({ pool: token, memory: yield* CudaInterprocess.share(buffer) })
 * })
 * ```
 *
 * @category pools
 * @since 0.1.0
 */
export const sharePool = (pool: MemoryPool): Effect.Effect<SharedPool, CudaError, Scope.Scope> => {
  const runtime = runtimeOfPool(pool)
  return Effect.map(
    Effect.acquireRelease(
      runtime.poolShare(refOfPool(pool)),
      ({ descriptor }) => released(runtime.descriptorClose(descriptor))
    ),
    ({ descriptor, id }) => ({ descriptor, token: { _tag: PoolTokenTag, id, device: pool.device.uuid } })
  )
}

/**
 * Opens a pool of another process, given its token and a descriptor of this process (`cuMemPoolImportFromShareableHandle`). It is closed
 * with its scope, after the memory opened from it.
 *
 * **Details**
 *
 * The pool serves to open memory. Allocating from it, statistics and settings fail with `InvalidArgument` or `InvalidValue`, because only
 * the process that made the pool can do that. The descriptor may be closed afterwards.
 *
 * Devices that have access to its device have access to the pool, and `CudaMemoryPool.allowAccess` gives it to others. A pool that is opened
 * twice is one pool, whose access changes for both. None of this was tried on GPUs.
 *
 * Fails with `InvalidArgument` for a descriptor that is not open, for a pool of this process and for a device that this process does not
 * see, and with the driver's status, often `Unknown`, for a descriptor of something else.
 *
 * **Gotchas**
 *
 * Memory that is still open when the pool's scope closes stays usable; the pool is then closed with the runtime.
 *
 * **Example** (Memory of another process's pool)
 *
 * ```ts
 * import { CudaInterprocess } from "effect-cuda"
 *
 * declare const token: CudaInterprocess.PoolToken
 * declare const descriptor: number // received from the other process
 *
 * const opened = CudaInterprocess.openPool(token, descriptor)
 * ```
 *
 * @category pools
 * @since 0.1.0
 */
export const openPool = (
  token: PoolToken,
  descriptor: number
): Effect.Effect<MemoryPool, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.suspend(() => {
    const operation = "CudaInterprocess.openPool"
    if (token?._tag !== PoolTokenTag || typeof token.id !== "string") {
      return refuseArgument(operation, "token", token, "the token of a shared pool")
    }
    return Effect.flatMap(deviceOf(operation, token.device), (device) =>
      makeScoped(device, {
        create: (runtime, index) => runtime.poolOpen(index, descriptor, token.id),
        destroy: (runtime, ref) => runtime.poolDestroy(ref),
        wrap: (runtime, ref): MemoryPool => new MemoryPoolImpl(runtime, ref)
      }))
  })

/** The index of the device with a UUID. */
const deviceOf = (operation: string, uuid: string | undefined): Effect.Effect<number, CudaError, CudaRuntime> =>
  uuid === undefined
    ? resolveDevice(undefined)
    : Effect.flatMap(CudaRuntime, ({ devices }) => {
      const found = devices.find((device) => device.uuid === uuid)
      return found === undefined
        ? refuseArgument(operation, "device", uuid, "the UUID of a device that this process sees")
        : Effect.succeed(found.index)
    })

/**
 * Copies a descriptor of another process into this one, which closes it with the scope (`pidfd_getfd`). For pools of a process that is not
 * the parent of this one.
 *
 * **Details**
 *
 * Needs Linux 5.6 or later, and the permission to debug the other process: the same user, and on systems with Yama
 * (`kernel.yama.ptrace_scope` 1) a process that this one has started. Fails with `NotPermitted` without the permission, with `NotSupported`
 * on other systems, and with `InvalidValue` if there is no such process or descriptor.
 *
 * **Example** (A descriptor of another process)
 *
 * ```ts
 * import { CudaInterprocess } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const token: CudaInterprocess.PoolToken
 * declare const pid: number
 * declare const theirs: number
 *
 * const opened = Effect.gen(function*() {
 *   const descriptor = yield* CudaInterprocess.takeDescriptor(pid, theirs)
 *   return yield* CudaInterprocess.openPool(token, descriptor)
 * })
 * ```
 *
 * @category pools
 * @since 0.1.0
 */
export const takeDescriptor = (
  pid: number,
  descriptor: number
): Effect.Effect<number, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.flatMap(CudaRuntime, (runtime) =>
    Effect.acquireRelease(
      runtime.descriptorTake(pid, descriptor),
      (taken) => released(runtime.descriptorClose(taken))
    ))

/**
 * Options for allocating memory outside of pools.
 *
 * @category models
 * @since 0.1.0
 */
export interface AllocateOptions extends BufferOptions {
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
}

/**
 * Allocates device memory outside of pools (`cuMemAlloc`), which other processes and libraries, such as PyTorch and CuPy, open with a token
 * alone.
 *
 * **Details**
 *
 * A buffer like any other. Allocating takes a few tenths of a millisecond of the JS thread. Releasing returns at once: the memory is freed
 * once the work that uses it is done and no device has work, because the driver would otherwise block the thread until then. Prefer a
 * shareable pool for memory that comes and goes. If the device has no room, waits for pending releases and tries again before failing with
 * `OutOfMemory`.
 *
 * **Gotchas**
 *
 * The driver puts small allocations into one block of 2 MiB, and a process that opens one of them can access the whole block.
 *
 * **Example** (A buffer for another process)
 *
 * ```ts
 * import { CudaInterprocess } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const token = Effect.gen(function*() {
 *   const buffer = yield* CudaInterprocess.allocate(1 << 20)
 *   return JSON.stringify(yield* CudaInterprocess.share(buffer)) // valid while the buffer lives
 * })
 * ```
 *
 * @category memory
 * @since 0.1.0
 */
export const allocate = (
  byteLength: number,
  options: AllocateOptions = {}
): Effect.Effect<DeviceBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  CudaMemory.reclaiming(options.device, {
    create: (runtime, device, fiber) =>
      runtime.memoryAllocateShareable(device, byteLength, {
        ordered: options.ordered ?? fiber.getRef(CurrentOrdering)
      }),
    destroy: (runtime, ref) => runtime.memoryFree(ref),
    wrap: (runtime, ref): DeviceBuffer => new CudaMemory.DeviceBufferImpl(runtime, ref)
  })

/**
 * Makes a token with which other processes open a buffer or a part of one (`cuMemPoolExportPointer`, `cuIpcGetMemHandle`). The memory must
 * be of a pool made with `CudaMemoryPool.make({ shareable: true })`, or of `allocate`.
 *
 * **Details**
 *
 * Nothing tells this process when others use the memory, or how long: `lend` does that. Fails with `InvalidArgument` for other memory, also
 * for memory of another process, and for ranges that are empty or end outside the buffer.
 *
 * **Gotchas**
 *
 * Keep the buffer until all processes have closed the memory. The driver does not notice if its owner releases it first: they go on to
 * use memory that may belong to another buffer by then. Opening a token of released memory can also succeed.
 *
 * **Example** (A buffer for another process)
 *
 * ```ts
 * import { CudaInterprocess } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const token = Effect.gen(function*() {
 *   const buffer = yield* CudaInterprocess.allocate(1 << 20)
 *   return JSON.stringify(yield* CudaInterprocess.share(buffer)) // valid while the buffer lives
 * })
 * ```
 *
 * @category memory
 * @since 0.1.0
 */
export const share = (part: Slice<DeviceBuffer>): Effect.Effect<MemoryToken, CudaError> =>
  Effect.map(
    runtimeOfPart(part).memoryShare(rangeOf(part)),
    ({ byteLength, handle, kind, offset, origin, pool }) => ({
      _tag: MemoryTokenTag,
      kind,
      handle: textOf(handle),
      offset,
      byteLength,
      device: part.buffer.device.uuid,
      origin,
      ...(pool === undefined ? undefined : { pool })
    })
  )

/**
 * Options for opening memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface OpenOptions<out R = never> extends BufferOptions {
  /** The pool of the memory, from `openPool`. Needed for memory of a pool. */
  readonly pool?: MemoryPool | undefined
  /** Default: the device in the token, or the current device. */
  readonly device?: DeviceInput | undefined
  /** Ends, in any way, when the process that shared the memory has. Stops the wait for the memory. */
  readonly gone?: Effect.Effect<unknown, unknown, R> | undefined
}

/**
 * Opens memory of another process as a buffer that lives as long as its scope (`cuMemPoolImportPointer`, `cuIpcOpenMemHandle`). Every
 * operation accepts it: copies, fills, launches, slices, graphs.
 *
 * **Details**
 *
 * If the other process lends the memory (`lend`), waits until its work on it is done. Closing the scope refuses new uses and releases the
 * memory after all work that uses it, then tells the other process through the event in the token. Reply to the other process after the
 * scope has closed.
 *
 * Closing a buffer of a pool does not wait. Closing one of `allocate` waits for the work that uses it, without blocking the thread. The
 * driver closes such memory only while no device has work, so it stays mapped until then.
 *
 * Fails with `InvalidArgument` for what is not a token, for memory of this process, without the pool or with another one, and for more
 * bytes than the allocation has; with `NeverFinishes` if `gone` ends during the wait; and with the driver's status, usually
 * `InvalidValue`, if the memory cannot be opened.
 *
 * **Gotchas**
 *
 * The first release of memory of a pool took 10 to 15 ms of the JS thread in three measurements, and later ones 1 to 25 µs.
 *
 * If the other process ends first, the memory stays valid in this one. Its events do not: one that was still pending does not complete, and a
 * stream that waits for it hangs (observed with driver 580). That is why `open` waits on the host, where `gone`, `Effect.timeout` or
 * interruption end the wait.
 *
 * **Example** (Working with lent memory in a child process)
 *
 * ```ts
 * import { CudaInterprocess, CudaMemory } from "effect-cuda"
 * import type { CudaMemoryPool } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const serve = (token: CudaInterprocess.MemoryToken, pool: CudaMemoryPool.MemoryPool) =>
 *   CudaInterprocess.open(token, { pool }).pipe(
 *     Effect.flatMap((buffer) => CudaMemory.fill(buffer, 1)),
 *     Effect.scoped,
 *     Effect.andThen(Effect.sync(() => process.send?.("returned")))
 *   )
 * ```
 *
 * @category memory
 * @since 0.1.0
 */
export const open = <R = never>(
  token: MemoryToken,
  options: OpenOptions<R> = {}
): Effect.Effect<DeviceBuffer, CudaError, CudaRuntime | Scope.Scope | R> =>
  Effect.suspend(() => {
    const operation = "CudaInterprocess.open"
    const shared = sharedOf(token)
    if (shared === undefined) return refuseArgument(operation, "token", token, "a token of shared memory")
    const { device, gone, ordered, pool } = options
    const place = device ?? (token.device === undefined ? pool?.deviceIndex : undefined)
    const found = place === undefined ? deviceOf(operation, token.device) : Effect.succeed(place)
    return Effect.flatMap(found, (index) => {
      const opened = makeScoped(index, {
        create: (runtime, deviceIndex, fiber) =>
          runtime.memoryOpen(deviceIndex, shared, {
            ordered: ordered ?? fiber.getRef(CurrentOrdering),
            pool: pool === undefined ? undefined : refOfPool(pool)
          }),
        destroy: (runtime, ref) => runtime.memoryFree(ref),
        wrap: (runtime, ref): DeviceBuffer => new CudaMemory.DeviceBufferImpl(runtime, ref)
      })
      return unlessFailing(opened, (buffer) => named(operation)(whenReady(token, buffer, gone)))
    })
  })

/** Acquires a resource and waits for it. If waiting fails or is interrupted, the resource is released right away. */
const unlessFailing = <A, E, R, R2>(
  acquire: Effect.Effect<A, E, R | Scope.Scope>,
  wait: (acquired: A) => Effect.Effect<void, E, R2>
): Effect.Effect<A, E, R | R2 | Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Scope.fork(yield* Scope.Scope)
      const acquired = yield* Effect.onError(Scope.provide(acquire, scope), () => Scope.close(scope, Exit.void))
      yield* Effect.onError(restore(wait(acquired)), () => Scope.close(scope, Exit.void))
      return acquired
    })
  )

/** Waits until the other process has made the memory ready. */
const whenReady = <R>(
  { ready }: MemoryToken,
  { deviceIndex }: DeviceBuffer,
  gone: Effect.Effect<unknown, unknown, R> | undefined
): Effect.Effect<void, CudaError, CudaRuntime | R> =>
  ready === undefined
    ? Effect.void
    : CudaEvent.fromIpcHandle(bytesOf(ready), { device: deviceIndex }).pipe(
      Effect.flatMap((event) => whenDone(event, gone, "the process that shared the memory has ended")),
      Effect.scoped
    )

/**
 * Waits for an event of another process. Never on the GPU, where the wait could not end if the process dies: an event that is pending
 * then does not complete.
 */
const whenDone = <R>(
  event: CudaEvent.CudaEvent,
  gone: Effect.Effect<unknown, unknown, R> | undefined,
  because: string
): Effect.Effect<void, CudaError, R> => {
  const done = Effect.provideService(CudaEvent.synchronize(event), CurrentWaitOptions, { wakeUp: false })
  if (gone === undefined) return done
  const ended = Effect.andThen(
    Effect.exit(gone),
    Effect.flatMap(
      CudaEvent.query(event),
      (isDone) => isDone ? Effect.void : neverFinishes("CudaEvent.synchronize", String(event), because)
    )
  )
  return Effect.raceFirst(done, ended)
}

const neverFinishes = (operation: string, resource: string, because: string): Effect.Effect<never, CudaError> =>
  Effect.fail(new CudaError({ operation, reason: { _tag: "NeverFinishes", resource, because } }))

/**
 * Options for lending memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface LendOptions<out R = never> {
  /** The stream whose work so far the other process waits for. Default: the current stream. */
  readonly stream?: CudaStream | undefined
  /** Ends, in any way, when the other process has, such as `exitOf(child)`. Ends the loan. */
  readonly gone?: Effect.Effect<unknown, unknown, R> | undefined
}

/**
 * Lends memory to another process while an effect runs. The effect is given the token: it sends it, and ends when the other process
 * replies that it has closed the memory.
 *
 * **Details**
 *
 * The other process waits for the work that the stream has at the beginning, in `open`. When the effect has ended, waits until the other
 * process's work on the memory is done, which may be after its reply. Both waits suspend a fiber, and nothing waits on the GPU.
 *
 * The memory counts as written on the stream all the while (see `CudaMemory.access`): conflicting accesses of an ordered buffer come before
 * or after the loan, and the memory is not freed during the loan.
 *
 * If the other process ends, the loan is over: the memory is intact, its contents may be half written. With `gone`, the effect is
 * interrupted then, and `lend` fails with `NeverFinishes`. Without it, only you can end the loan.
 *
 * **Gotchas**
 *
 * If the effect fails or is interrupted while the other process lives on, that process may still use the memory. End it first, for example
 * by starting it in a scope inside the effect.
 *
 * The reply must come after the scope of `open` has closed in the other process; otherwise the memory counts as returned too early.
 *
 * **Example** (Letting a child process fill a buffer)
 *
 * ```ts
 * import { CudaInterprocess } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import type { ChildProcess } from "node:child_process"
 *
 * const filled = (buffer: CudaMemory.DeviceBuffer, child: ChildProcess) =>
 *   CudaInterprocess.lend(
 *     buffer,
 *     (token) =>
 *       Effect.callback<void>((resume) => {
 *         child.once("message", () => resume(Effect.void))
 *         child.send(token)
 *       }),
 *     { gone: CudaInterprocess.exitOf(child) }
 *   )
 * ```
 *
 * @category memory
 * @since 0.1.0
 */
export const lend: {
  <A, E, R, R2 = never>(
    use: (token: MemoryToken) => Effect.Effect<A, E, R>,
    options?: LendOptions<R2>
  ): (part: Slice<DeviceBuffer>) => Effect.Effect<A, E | CudaError, R | R2>
  <A, E, R, R2 = never>(
    part: Slice<DeviceBuffer>,
    use: (token: MemoryToken) => Effect.Effect<A, E, R>,
    options?: LendOptions<R2>
  ): Effect.Effect<A, E | CudaError, R | R2>
} = dual(
  (args) => typeof args[0] !== "function",
  <A, E, R, R2 = never>(
    part: Slice<DeviceBuffer>,
    use: (token: MemoryToken) => Effect.Effect<A, E, R>,
    { gone, stream }: LendOptions<R2> = {}
  ): Effect.Effect<A, E | CudaError, R | R2> => {
    const operation = "CudaInterprocess.lend"
    if (typeof use !== "function") return refuseForced(operation, "use", use, "a function of the token")
    const runtime = runtimeOfPart(part)
    const wrong = wrongHandleOf(runtime)
    if (wrong !== undefined) return wrong.refuse(operation)
    const event = Effect.provideService(
      CudaEvent.make({ interprocess: true, device: stream?.deviceIndex }),
      CudaRuntime,
      runtime
    )
    const over = "the process that borrowed the memory has ended"
    const loan = Effect.gen(function*() {
      const shared = yield* share(part)
      const [ready, returned] = [yield* event, yield* event]
      yield* CudaEvent.record(ready, stream)
      const token: MemoryToken = {
        ...shared,
        ready: textOf(yield* CudaEvent.ipcHandle(ready)),
        returned: textOf(yield* CudaEvent.ipcHandle(returned))
      }
      const result = yield* unlessGone(
        use(token),
        gone,
        neverFinishes(operation, `the loan of ${part.buffer.ref}`, over)
      )
      yield* named(operation)(whenDone(returned, gone, over))
      return result
    })
    return CudaMemory.access(Effect.scoped(loan), { writes: [part], stream })
  }
)

const unlessGone = <A, E, R, R2>(
  self: Effect.Effect<A, E, R>,
  gone: Effect.Effect<unknown, unknown, R2> | undefined,
  failure: Effect.Effect<never, CudaError>
): Effect.Effect<A, E | CudaError, R | R2> =>
  gone === undefined ? self : Effect.raceFirst(self, Effect.andThen(Effect.exit(gone), failure))

/**
 * A child process, as far as `exitOf` needs it.
 *
 * @category models
 * @since 0.1.0
 */
export interface ExitingProcess {
  /** Undefined if it could not be started. */
  readonly pid?: number | undefined
  readonly exitCode: number | null
  readonly signalCode: string | null
  readonly once: (event: "exit", listener: () => void) => unknown
  readonly off: (event: "exit", listener: () => void) => unknown
}

/**
 * Waits until a child process of `node:child_process` has ended, for the `gone` of `lend`. Ends at once if it has, or could not be started.
 *
 * **Example** (Memory that is kept for a child)
 *
 * ```ts
 * import { CudaInterprocess } from "effect-cuda"
 * import type { ChildProcess } from "node:child_process"
 *
 * declare const child: ChildProcess
 *
 * const ended = CudaInterprocess.exitOf(child)
 * ```
 *
 * @category memory
 * @since 0.1.0
 */
export const exitOf = (child: ExitingProcess): Effect.Effect<void> =>
  Effect.callback((resume) => {
    if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
    const onExit = () => resume(Effect.void)
    child.once("exit", onExit)
    return Effect.sync(() => child.off("exit", onExit))
  })

/**
 * Storage that PyTorch shares, as `torch.UntypedStorage._share_cuda_()` describes it. Bytes are given as they are, or in base64.
 *
 * @category models
 * @since 0.1.0
 */
export interface TorchStorage {
  readonly handle: Uint8Array | string
  /** The size of the storage in bytes. */
  readonly size: number
  /** Bytes from the start of PyTorch's block to the storage. */
  readonly offset: number
  /** The event to wait for, if `event_sync_required`. */
  readonly event?: Uint8Array | string | undefined
}

/**
 * Makes a token of storage that PyTorch shares, to be opened with `open`.
 *
 * **Details**
 *
 * Keep the tensor alive in Python until the memory is closed here. Then PyTorch also needs `_release_ipc_counter_cuda`, or it never frees
 * the storage. Fails with `InvalidArgument` for memory of expandable segments (`expandable_segments:True`), which PyTorch shares in another
 * way, and for handles of unknown versions. The format is that of PyTorch 2.11; tokens have no `device`, since PyTorch numbers devices as
 * its own process sees them.
 *
 * **Example** (A tensor of a PyTorch process)
 *
 * ```ts
 * import { CudaInterprocess } from "effect-cuda"
 *
 * declare const storage: CudaInterprocess.TorchStorage // what `storage._share_cuda_()` gives there
 *
 * const token = CudaInterprocess.fromTorch(storage)
 * ```
 *
 * @category interoperability
 * @since 0.1.0
 */
export const fromTorch = (storage: TorchStorage): Effect.Effect<MemoryToken, CudaError> =>
  Effect.suspend(() => {
    const operation = "CudaInterprocess.fromTorch"
    if (!Predicate.isObject(storage)) return refuseArgument(operation, "storage", storage, "a shared storage")
    const { event, handle, offset, size } = storage
    const bytes = typeof handle === "string" ? bytesOf(handle) : handle
    const isPlain = bytes?.byteLength === handleSize
    const isTagged = bytes?.byteLength === handleSize + 2 && bytes[1] === torchAllocation
    if (!isPlain && !isTagged) {
      return refuseArgument(operation, "handle", handle, "64 bytes, or 66 of which the second is the letter c")
    }
    if (event !== undefined && typeof event !== "string" && !(event instanceof Uint8Array)) {
      return refuseArgument(operation, "event", event, "the bytes of an event's handle, or the same in base64")
    }
    return Effect.succeed({
      _tag: MemoryTokenTag,
      kind: "allocation",
      handle: textOf(bytes.subarray(-handleSize)),
      offset,
      byteLength: size,
      ...(event === undefined ? undefined : { ready: typeof event === "string" ? event : textOf(event) })
    })
  })

const handleSize = 64

/** The letter for memory of `cudaMalloc`, after a byte for the version. */
const torchAllocation = "c".charCodeAt(0)

const textOf = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64")

const bytesOf = (text: string): Uint8Array<ArrayBuffer> => new Uint8Array(Buffer.from(text, "base64"))

/** The memory that a token stands for, which the runtime checks further; undefined for anything but a token. */
const sharedOf = (token: MemoryToken): SharedMemory | undefined => {
  if (token?._tag !== MemoryTokenTag) return undefined
  const { byteLength, handle, kind, offset, origin, pool, ready, returned } = token
  if (typeof handle !== "string") return undefined
  for (const event of [ready, returned]) if (event !== undefined && typeof event !== "string") return undefined
  return {
    kind,
    handle: bytesOf(handle),
    offset,
    byteLength,
    origin,
    pool,
    returned: returned === undefined ? undefined : bytesOf(returned)
  }
}
