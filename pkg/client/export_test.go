package client

// EnqueueBatchAt is for the tests of this package.
var EnqueueBatchAt = (*Client).enqueueBatchAt
