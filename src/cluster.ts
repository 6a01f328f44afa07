/**
 * Jobs over machines, on Effect's own cluster: the optional entry point `effect-cuda/cluster`.
 *
 * Kept out of the main entry point, so that programs without a cluster never load one. Depends on `effect` alone and works with every transport and
 * storage that Effect's cluster has.
 *
 * @since 0.1.0
 */
export * as CudaJob from "./cluster/CudaJob.ts"
export * as JobDevices from "./cluster/JobDevices.ts"
export * as JobStore from "./cluster/JobStore.ts"
