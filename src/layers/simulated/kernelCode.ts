/**
 * Kernels of simulated devices, with their attributes.
 */
import { kernelAttributes } from "../../cuda/flags.ts"
import type { KernelAttribute } from "../../cuda/flags.ts"
import type { CUkernel } from "../../cuda/handles.ts"
import { layOut } from "../../cuda/parameters.ts"
import { KernelCode } from "../shared/moduleResources.ts"
import type { ModuleResource } from "../shared/moduleResources.ts"
import type { SimulatedKernel } from "./kernelFunctions.ts"

/** A kernel as the simulated driver knows it: its function and its attributes on each device. */
export class SimulatedCode extends KernelCode {
  readonly kernel: SimulatedKernel
  readonly #set = new Map<string, number>()

  constructor(module: ModuleResource, handle: CUkernel, name: string, kernel: SimulatedKernel) {
    const { offsets } = layOut(kernel.parameters)
    super(
      module,
      handle,
      name,
      kernel.parameters.map((kind, index) => ({ offset: offsets[index]!, size: kind.size, kind }))
    )
    this.kernel = kernel
  }

  attribute(attribute: KernelAttribute, deviceIndex: number): number {
    const set = this.#set.size === 0 ? undefined : this.#set.get(`${deviceIndex} ${attribute}`)
    return set ?? this.kernel.attributes?.[attribute] ?? usualAttributes[attribute]
  }

  setAttribute(attribute: KernelAttribute, value: number, deviceIndex: number): void {
    this.#set.set(`${deviceIndex} ${attribute}`, value)
  }
}

const absent = Object.fromEntries(Object.keys(kernelAttributes).map((name) => [name, 0])) as {
  readonly [A in KernelAttribute]: number
}

const usualAttributes: { readonly [A in KernelAttribute]: number } = {
  ...absent,
  maxThreadsPerBlock: 1024,
  numRegs: 32,
  ptxVersion: 90,
  binaryVersion: 90,
  maxDynamicSharedSizeBytes: 48 * 1024,
  preferredSharedMemoryCarveout: -1
}

/** Narrows a kernel. All kernels of a simulated runtime are simulated. */
export const simulatedCode = (code: KernelCode): SimulatedCode => code as SimulatedCode
