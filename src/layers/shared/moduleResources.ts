/**
 * Modules and kernels as resources of a runtime: the implementation of the public references. Runtimes use these
 * classes, or subclasses with more state.
 */
import { nullHandle } from "../../cuda/handles.ts"
import type { CUkernel, CUlibrary, HostPointer } from "../../cuda/handles.ts"
import type { ParameterKind } from "../../cuda/parameters.ts"
import type { KernelRef, ModuleOptions, ModuleRef, ResourceState } from "../CudaRuntime.ts"
import { inBytes } from "../runtime/words.ts"
import type { Arguments } from "./arguments.ts"
import { wrongHandle } from "./resources.ts"
import type { DeviceMemoryResource, Owner } from "./resources.ts"

export class ModuleResource implements ModuleRef {
  state: ResourceState = "live"
  readonly owner: Owner
  readonly handle: CUlibrary
  readonly byteLength: number
  readonly options: ModuleOptions
  /** The kernels looked up so far, by name. */
  readonly codes = new Map<string, KernelCode>()
  /** The global variables looked up so far, by device and name. */
  readonly globals = new Map<string, DeviceMemoryResource>()
  constructor(owner: Owner, handle: CUlibrary, byteLength: number, options: ModuleOptions) {
    this.owner = owner
    this.handle = handle
    this.byteLength = byteLength
    this.options = options
  }
  toString(): string {
    return `module 0x${this.handle.toString(16)} of ${inBytes(this.byteLength)}`
  }
}

/** The driver's description of a parameter. */
export interface ParameterInfo {
  readonly offset: number
  readonly size: number
  /** Only for kernels of simulated devices, because the driver only knows sizes. */
  readonly kind?: ParameterKind
}

/** A device's limits for a launch. */
export interface DeviceLimits {
  readonly grid: readonly [x: number, y: number, z: number]
  readonly block: readonly [x: number, y: number, z: number]
  /** Bytes of shared memory per block, for a kernel that opted in to the maximum. */
  readonly sharedBytes: number
  readonly clusters: boolean
  readonly cooperative: boolean
  readonly programmatic: boolean
}

/** A kernel whose code is loaded on a device. */
export interface CodeOnDevice {
  readonly limits: DeviceLimits
  readonly maxThreads: number
  /** Bytes of the kernel's static shared memory. */
  readonly staticShared: number
  /** The kernel's current limit of dynamic shared memory, in bytes. */
  dynamicShared: number
}

/** A kernel as the driver knows it. References with different parameter declarations share it. */
export class KernelCode {
  readonly module: ModuleResource
  readonly handle: CUkernel
  readonly name: string
  /** Known once the code is on a device. Undefined if the driver does not report them. */
  parameters: ReadonlyArray<ParameterInfo> | undefined
  /** By device; undefined if the code is not loaded there. */
  readonly on: Array<CodeOnDevice | undefined> = []
  constructor(
    module: ModuleResource,
    handle: CUkernel,
    name: string,
    parameters?: ReadonlyArray<ParameterInfo>
  ) {
    this.module = module
    this.handle = handle
    this.name = name
    this.parameters = parameters
  }
  toString(): string {
    return `kernel ${this.name}`
  }
}

export class KernelResource implements KernelRef {
  readonly code: KernelCode
  readonly parameters: ReadonlyArray<ParameterKind>
  readonly arguments: Arguments
  /** Where the backend reads the arguments from. */
  readonly table: HostPointer
  constructor(code: KernelCode, parameters: ReadonlyArray<ParameterKind>, args: Arguments, table: HostPointer) {
    this.code = code
    this.parameters = parameters
    this.arguments = args
    this.table = table
  }
  get module(): ModuleResource {
    return this.code.module
  }
  get handle(): CUkernel {
    return this.code.handle
  }
  get name(): string {
    return this.code.name
  }
}

/** The resource behind a reference. Anything else becomes a stand-in, for which `isGone` is true. */
export const ownModule = (ref: ModuleRef): ModuleResource =>
  ref instanceof ModuleResource
    ? ref
    : wrongHandle(ModuleResource.prototype, { given: ref, argument: "module", expected: "a module" })
export const ownKernel = (ref: KernelRef): KernelResource => ref instanceof KernelResource ? ref : wrongKernel(ref)

const wrongKernel = (given: unknown): KernelResource => {
  const module = wrongHandle(ModuleResource.prototype, { given, argument: "kernel", expected: "a kernel" })
  return new KernelResource(new KernelCode(module, nullHandle(), ""), [], noArguments, nullHandle())
}

/** Arguments of a stand-in, which is never launched. */
const noArguments: Arguments = Object.create(null)

/** True for a module of another runtime and for a released one. */
export const isGone = (owner: Owner, module: ModuleResource): boolean =>
  module.owner !== owner || module.state !== "live"
