/**
 * Modules and kernels as resources of a runtime: what the public references are behind the door. Every runtime makes its own
 * from these classes, or from subclasses with more state.
 */
import { nullHandle } from "../../cuda/handles.ts"
import type { CUkernel, CUlibrary, HostPointer } from "../../cuda/handles.ts"
import type { ParameterKind } from "../../cuda/parameters.ts"
import type { KernelRef, ModuleOptions, ModuleRef, ResourceState } from "../CudaRuntime.ts"
import type { Arguments } from "./arguments.ts"
import { wrongHandle } from "./resources.ts"
import type { DeviceMemoryResource, Owner } from "./resources.ts"

export class ModuleResource implements ModuleRef {
  state: ResourceState = "live"
  readonly owner: Owner
  readonly handle: CUlibrary
  readonly byteLength: number
  readonly options: ModuleOptions
  /** The kernels that were asked for, by name. */
  readonly codes = new Map<string, KernelCode>()
  /** The global variables that were asked for, by device and name. */
  readonly globals = new Map<string, DeviceMemoryResource>()
  constructor(owner: Owner, handle: CUlibrary, byteLength: number, options: ModuleOptions) {
    this.owner = owner
    this.handle = handle
    this.byteLength = byteLength
    this.options = options
  }
  toString(): string {
    return `module 0x${this.handle.toString(16)} of ${this.byteLength} bytes`
  }
}

/** What the driver says of a parameter. */
export interface ParameterInfo {
  readonly offset: number
  readonly size: number
  /** Only for kernels of simulated devices: a driver knows sizes alone. */
  readonly kind?: ParameterKind
}

/** How much of everything a device gives to one launch. */
export interface DeviceLimits {
  readonly grid: readonly [x: number, y: number, z: number]
  readonly block: readonly [x: number, y: number, z: number]
  /** Bytes of shared memory of a block, for a kernel that was allowed the most. */
  readonly sharedBytes: number
  readonly clusters: boolean
  readonly cooperative: boolean
  readonly programmatic: boolean
}

/** A kernel whose code is on a device. */
export interface CodeOnDevice {
  readonly limits: DeviceLimits
  readonly maxThreads: number
  /** Bytes of shared memory that the kernel has by itself. */
  readonly staticShared: number
  /** Bytes of dynamic shared memory that it is allowed. */
  dynamicShared: number
}

/** A kernel as the driver knows it, whoever asked for it and with what parameters. */
export class KernelCode {
  readonly module: ModuleResource
  readonly handle: CUkernel
  readonly name: string
  /** Known once its code is on a device. Nothing where the driver does not say. */
  parameters: ReadonlyArray<ParameterInfo> | undefined
  /** By device; nothing where its code was not loaded yet. */
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
  /** Where the backend finds the arguments. */
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

/** The resource behind a reference; a stand-in that `isGone` finds for anything else. */
export const ownModule = (ref: ModuleRef): ModuleResource =>
  ref instanceof ModuleResource
    ? ref
    : wrongHandle(ModuleResource.prototype, { given: ref, argument: "module", expected: "a module" })
export const ownKernel = (ref: KernelRef): KernelResource => ref instanceof KernelResource ? ref : wrongKernel(ref)

const wrongKernel = (given: unknown): KernelResource => {
  const module = wrongHandle(ModuleResource.prototype, { given, argument: "kernel", expected: "a kernel" })
  return new KernelResource(new KernelCode(module, nullHandle(), ""), [], noArguments, nullHandle())
}

/** No kernel that is gone packs arguments. */
const noArguments: Arguments = Object.create(null)

/** True for a module of another runtime and for one that was released. */
export const isGone = (owner: Owner, module: ModuleResource): boolean =>
  module.owner !== owner || module.state !== "live"
