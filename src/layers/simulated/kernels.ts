/**
 * Kernels of simulated devices: found by name among those that the runtime was told of, and launched as work that runs their
 * functions.
 */
import type { KernelAttribute } from "../../cuda/flags.ts"
import { nullHandle } from "../../cuda/handles.ts"
import type { HostPointer } from "../../cuda/handles.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { BlockSuggestion } from "../CudaRuntime.ts"
import type { KernelBackend } from "../shared/kernels.ts"
import type { LaunchShape } from "../shared/launchShape.ts"
import type { KernelCode, KernelResource, ModuleResource } from "../shared/moduleResources.ts"
import type { StreamResource } from "../shared/resources.ts"
import type { AddressSpace } from "./addressSpace.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { SimulatedCode, simulatedCode } from "./kernelCode.ts"
import { costOf, decodeAll, launchOf } from "./kernelFunctions.ts"
import type { SimulatedKernel, SimulatedLaunch } from "./kernelFunctions.ts"
import type { SimulatedModules } from "./modules.ts"
import { describeSymbols } from "./modules.ts"
import { activeBlocks, activeClusters, bestBlock, largestCluster, multiprocessorOf, refuseLaunch } from "./occupancy.ts"
import { KernelFault, Pointer } from "./pointers.ts"
import { memoryPart, streamPart } from "./resources.ts"

export class SimulatedKernels implements KernelBackend {
  code: KernelCode | undefined
  value = 0
  blockSuggestion: BlockSuggestion = { block: 0, minGrid: 0 }
  readonly #driver: SimulatedDriver
  readonly #addresses: AddressSpace
  readonly #modules: SimulatedModules

  constructor(driver: SimulatedDriver, addresses: AddressSpace, modules: SimulatedModules) {
    this.#driver = driver
    this.#addresses = addresses
    this.#modules = modules
  }

  find(module: ModuleResource, name: string): number {
    const status = this.#driver.begin("cuLibraryGetKernel", this.#driver.device(0))
    if (status !== success) return status
    const kernel = this.#driver.options.kernels.get(name)
    if (kernel === undefined) {
      this.#driver.missing = describeSymbols("kernels", [...this.#driver.options.kernels.keys()])
      return statuses.NotFound.code
    }
    this.code = new SimulatedCode(module, this.#driver.model.makeHandle(), name, kernel)
    return success
  }

  load(_: KernelCode, device: number): number {
    return this.#driver.begin("cuKernelGetFunction", this.#driver.device(device))
  }

  attribute(code: KernelCode, attribute: KernelAttribute, device: number): number {
    this.#driver.call = "cuKernelGetAttribute"
    this.value = simulatedCode(code).attribute(attribute, device)
    return success
  }

  setAttribute(code: KernelCode, attribute: KernelAttribute, value: number, device: number): number {
    this.#driver.call = "cuKernelSetAttribute"
    simulatedCode(code).setAttribute(attribute, value, device)
    return success
  }

  activeBlocks(code: KernelCode, threads: number, sharedBytes: number, device: number): number {
    const status = this.#driver.begin("cuOccupancyMaxActiveBlocksPerMultiprocessor", this.#driver.device(device))
    this.value = activeBlocks(this.#multiprocessor(device), simulatedCode(code), device, threads, sharedBytes)
    return status
  }

  bestBlock(code: KernelCode, sharedBytes: number, maxThreads: number, device: number): number {
    const status = this.#driver.begin("cuOccupancyMaxPotentialBlockSize", this.#driver.device(device))
    const multiprocessor = this.#multiprocessor(device)
    this.blockSuggestion = bestBlock(multiprocessor, simulatedCode(code), device, sharedBytes, maxThreads)
    return status
  }

  activeClusters(code: KernelCode, shape: LaunchShape, device: number): number {
    const status = this.#driver.begin("cuOccupancyMaxActiveClusters", this.#driver.device(device))
    if (status !== success) return status
    const simulated = simulatedCode(code)
    if (shape.clusterBlocks > largestCluster(simulated, device)) return statuses.InvalidClusterSize.code
    this.value = activeClusters(this.#multiprocessor(device), simulated, device, shape)
    return success
  }

  maxCluster(code: KernelCode, _: LaunchShape, device: number): number {
    this.value = largestCluster(simulatedCode(code), device)
    return this.#driver.begin("cuOccupancyMaxPotentialClusterSize", this.#driver.device(device))
  }

  #multiprocessor(device: number) {
    return multiprocessorOf(this.#driver.options.devices[device]!.attributes)
  }

  /** Kernels find their arguments through the launch itself. */
  argumentTable(): HostPointer {
    return nullHandle()
  }

  launch(kernel: KernelResource, shape: LaunchShape, stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#driver.begin("cuLaunchKernelEx", part.device)
    if (status !== success) return status
    const simulated = simulatedCode(kernel.code)
    const unfit = refuseLaunch(this.#multiprocessor(stream.device), simulated, stream.device, shape)
    if (unfit !== success) return unfit
    const { arguments: packed, module } = kernel
    const isThere = packed.pointers.every(({ memory }) => memory === undefined || memoryPart(memory).tryTouch())
    if (!isThere) return statuses.OutOfMemory.code
    const { kernel: definition } = simulated
    const args = decodeAll(
      definition.parameters,
      packed,
      (address, origin) => this.#addresses.at(address, origin)
    )
    const launch = launchOf(args, shape, stream.device, (name) => this.#variable(module, name, stream.device))
    const duration = this.#costOf(kernel, definition, launch)
    if (duration === undefined) return part.device.lost
    this.#driver.model.work(part, {
      duration,
      act: () => this.#driver.runCode(`Kernel ${kernel.name}`, () => definition.run(launch))
    })
    return success
  }

  /** What a launch costs; nothing when finding that out failed, which ends the contexts as a failure of the kernel does. */
  #costOf({ name }: KernelResource, definition: SimulatedKernel, launch: SimulatedLaunch): number | undefined {
    let duration: number | undefined
    try {
      this.#driver.runCode(`The cost of kernel ${name}`, () => {
        duration = costOf(definition, launch)
      })
    } catch {
      this.#driver.lose(launch.device, statuses.LaunchFailed.code)
    }
    return duration
  }

  #variable(module: ModuleResource, name: string, device: number): Pointer {
    const memory = this.#modules.variable(module, name, device)
    if (memory === undefined) {
      throw new KernelFault("LaunchFailed", `there is no global variable ${name}. ${this.#modules.describeGlobals()}`)
    }
    return new Pointer(memory.part, 0, memory.byteLength, memory.address, `global variable ${name}`)
  }
}
