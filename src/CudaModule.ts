/**
 * Modules: images of code loaded into the driver, with the kernels and global variables in them.
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
import type { CudaProgram } from "./CudaProgram.ts"
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
  readonly program: CudaProgram
  /** The `CUlibrary`, for other native code. */
  readonly handle: number
}

/**
 * True for modules.
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
   * How long to wait for a moment when no stream of the device has work, before loading code into the device anyway. The
   * driver then blocks the JS thread until the work enqueued so far is done. Default: 1 second; `Infinity` always waits
   * for such a moment.
   */
  readonly idleTimeout?: Duration.Input | undefined
}

/**
 * Loads a program for as long as its scope lives (`cuLibraryLoadData`).
 *
 * **Details**
 *
 * The driver compiles PTX here, on a thread of libuv's pool, and keeps what it compiled on disk. Interruption ends the fiber
 * at once; the load goes on and comes to nothing.
 *
 * Fails with `InvalidImage`, `InvalidPtx` (`log` has what the driver's compiler said, with line numbers), `NoBinaryForGpu`,
 * or `InvalidArgument` for a program of the simulated runtime.
 *
 * The release waits for nothing: a module is unloaded when no device has work, since the driver would hold up the JS thread
 * for it otherwise, at the latest when the runtime is released.
 *
 * **Gotchas**
 *
 * With `CUDA_MODULE_LOADING=EAGER` in the environment the driver loads all code here, and while it waits for a busy device
 * nothing can be enqueued.
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
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const idleTimeout = Option.getOrUndefined(Duration.fromInput(options.idleTimeout ?? "1 second"))
    if (idleTimeout === undefined || Duration.isNegative(idleTimeout)) {
      return yield* refuseArgument("CudaModule.load", "idleTimeout", options.idleTimeout, "a duration from 0")
    }
    const ref = yield* Effect.acquireRelease(
      runtime.moduleLoad(program.image, { idleTimeout }),
      (made) => released(runtime.moduleUnload(made)),
      { interruptible: true }
    )
    return new ModuleImpl(runtime, ref, program)
  }).pipe(Effect.withSpan("CudaModule.load", { attributes: { "cuda.program": program.name } }))

/**
 * Finds a global variable of a module by its name (`cuLibraryGetGlobal`): its memory on a device, as a buffer to copy to and
 * from. It lives as long as the module.
 *
 * **Details**
 *
 * The first time on a device waits as `CudaKernel.get` does. Fails with `NotFound` for a variable that is not in the image.
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
  (args) => isCudaModule(args[0]),
  (module: CudaModule, name: string, options: DeviceOptions = {}): Effect.Effect<DeviceBuffer, CudaError> =>
    Effect.flatMap(resolveDevice(options.device), (device) =>
      Effect.map(
        module.runtime.moduleGlobal(module.ref, module.program.loweredName(name), device),
        (ref) => new DeviceBufferImpl(module.runtime, ref)
      ))
)
