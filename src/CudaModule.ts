/**
 * Modules: code images loaded into the driver, with the kernels and global variables in them.
 *
 * Depends on the `CudaRuntime` interface, on programs, on memory, and on the handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import * as Option from "effect/Option"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type { DeviceOptions } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import { DeviceBufferImpl } from "./CudaMemory.ts"
import type { DeviceBuffer } from "./CudaMemory.ts"
import { isCudaProgram } from "./CudaProgram.ts"
import type { CudaProgram } from "./CudaProgram.ts"
import { isNamed, refOfModule, runtimeOfModule } from "./internal/given.ts"
import { oneLine, refuseArgument, released, ResourceHandle, unlessLive } from "./internal/handles.ts"
import { resolveDevice } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, ModuleRef } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaModule"

/**
 * A loaded image (`CUlibrary`), usable on every device.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaModule extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaModule": "~effect-cuda/CudaModule"
  readonly runtime: CudaRuntimeService
  readonly ref: ModuleRef
  /** The program that the module was loaded from. */
  readonly program: CudaProgram
  /** The `CUlibrary`, for other native code. */
  readonly handle: number
}

/**
 * Returns `true` if a value is a module.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaModule = (u: unknown): u is CudaModule => Predicate.hasProperty(u, TypeId)

class ModuleImpl extends ResourceHandle<ModuleRef> implements CudaModule {
  readonly [TypeId] = TypeId
  readonly program: CudaProgram
  constructor(runtime: CudaRuntimeService, ref: ModuleRef, program: CudaProgram) {
    super(runtime, ref)
    this.program = program
  }
  get handle(): number {
    return this.ref.handle
  }
  toString(): string {
    return oneLine("CudaModule", this.program.name, unlessLive(this.ref))
  }
  toJSON() {
    const { handle, program } = this
    return { _id: "CudaModule", program: program.name, handle, state: this.ref.state }
  }
}

/**
 * Options for loading a program.
 *
 * @category models
 * @since 0.1.0
 */
export interface LoadOptions {
  /**
   * How long to wait until no stream of the device has work before loading code into it anyway. In that case the driver blocks the JS
   * thread until the work enqueued so far is done. Default: 1 second. `Infinity` waits without limit.
   */
  readonly idleTimeout?: Duration.Input | undefined
}

/**
 * Loads a program as a module that lives as long as its scope (`cuLibraryLoadData`).
 *
 * **Details**
 *
 * Loading runs on a thread of libuv's pool. For PTX, the driver compiles it there and caches the result on disk. Interruption ends the
 * fiber immediately; the load then finishes in the background, and its result is unloaded.
 *
 * Fails with `InvalidImage`, with `InvalidPtx` (`log` has the output of the driver's compiler, with line numbers), with
 * `NoBinaryForGpu`, and with `InvalidArgument` for a program of the simulated runtime or an `idleTimeout` that is not a non-negative
 * duration.
 *
 * Releasing the module does not wait (`cuLibraryUnload`). Because unloading makes the driver block the JS thread until every device is
 * idle, the module is unloaded when no device has work, or at the latest when the runtime is released.
 *
 * **Gotchas**
 *
 * With `CUDA_MODULE_LOADING=EAGER` in the environment, the driver loads all code here. While it waits for a busy device, no work can be
 * enqueued.
 *
 * **Example** (Adding two buffers)
 *
 * ```ts
 * import { CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaProgram } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const source: string // __global__ void add(float* to, const float* from, int count)
 *
 * const program = Effect.gen(function*() {
 *   const module = yield* CudaModule.load(yield* CudaProgram.compile(source, { nameExpressions: ["add"] }))
 *   const add = yield* CudaKernel.get(module, "add", [
 *     CudaParameter.pointer,
 *     CudaParameter.input,
 *     CudaParameter.i32
 *   ])
 *   const [to, from] = yield* Effect.all([CudaMemory.allocate(4000), CudaMemory.allocate(4000)])
 *   yield* CudaKernel.launch(add, { grid: 4, block: 256 }, [to, from, 1000])
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const load = (
  program: CudaProgram,
  options: LoadOptions = {}
): Effect.Effect<CudaModule, CudaError, CudaRuntime | Scope.Scope> =>
  isCudaProgram(program)
    ? Effect.gen(function*() {
      const runtime = yield* CudaRuntime
      const idleTimeout = Option.getOrUndefined(Duration.fromInput(options.idleTimeout ?? "1 second"))
      if (idleTimeout === undefined || Duration.isNegative(idleTimeout)) {
        return yield* refuseArgument("CudaModule.load", "idleTimeout", options.idleTimeout, "a non-negative duration")
      }
      return new ModuleImpl(runtime, yield* acquire(runtime, program.image, idleTimeout), program)
    }).pipe(Effect.withSpan("CudaModule.load", { attributes: { "cuda.program": program.name } }))
    : refuseArgument("CudaModule.load", "program", program, "a program")

/**
 * Loading can be interrupted at any step, also after the module was loaded and before the runtime, or a layer around it, has returned
 * it. So the module is noted when it is loaded.
 */
const acquire = (
  runtime: CudaRuntimeService,
  image: Uint8Array,
  idleTimeout: Duration.Duration
): Effect.Effect<ModuleRef, CudaError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.acquireRelease(
      Effect.suspend(() => {
        let loaded: ModuleRef | undefined
        const onLoaded = (module: ModuleRef) => {
          loaded = module
        }
        return Effect.onError(
          restore(runtime.moduleLoad(image, { idleTimeout, onLoaded })),
          () => loaded === undefined ? Effect.void : released(runtime.moduleUnload(loaded))
        )
      }),
      (module) => released(runtime.moduleUnload(module))
    )
  )

/**
 * Gets a module's global variable by name, as a buffer with its memory on a device (`cuLibraryGetGlobal`). The buffer lives as long
 * as the module.
 *
 * **Details**
 *
 * The first call for a variable on a device waits until the device is idle, as `CudaKernel.get` does. Fails with `NotFound` if the
 * image has no such variable.
 *
 * **Example** (Setting a constant)
 *
 * ```ts
 * import { CudaMemory, CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const set = Effect.flatMap(
 *   CudaModule.global(module, "factor"),
 *   (factor) => CudaMemory.upload(factor, Float32Array.of(0.5))
 * )
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const global: {
  (name: string, options?: DeviceOptions): (module: CudaModule) => Effect.Effect<DeviceBuffer, CudaError>
  (module: CudaModule, name: string, options?: DeviceOptions): Effect.Effect<DeviceBuffer, CudaError>
} = dual(
  (args) => isNamed(args[0], args[1]),
  (module: CudaModule, name: string, options: DeviceOptions = {}): Effect.Effect<DeviceBuffer, CudaError> =>
    Effect.flatMap(resolveDevice(options.device), (device) => {
      const runtime = runtimeOfModule(module)
      return Effect.map(
        runtime.moduleGlobal(refOfModule(module), loweredName(module, name), device),
        (ref) => new DeviceBufferImpl(runtime, ref)
      )
    })
)

/**
 * The name of a symbol in the image of a module.
 *
 * @internal
 */
export const loweredName = (module: CudaModule, name: string): string =>
  isCudaProgram(module?.program) ? module.program.loweredName(name) : name
